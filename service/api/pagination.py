"""Pages of a list: cursor, order and limit of a request, and the page of its response."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

from service.core.errors import FieldProblem, Unprocessable
from service.database.engine import Order, Position, Seek

# The largest number that a column can hold.
LARGEST_NUMBER = 2**31 - 1

Item = TypeVar("Item", bound=BaseModel)
Row = TypeVar("Row")

CursorQuery = Annotated[
    str | None,
    Query(alias="cursor", description="next_cursor of the page before, which had the same order"),
]
Limit = Annotated[int, Query(ge=1, le=200, description="items of one page")]
OrderQuery = Annotated[
    Order, Query(description="asc: oldest, or smallest name, first; desc: the other way round")
]


class Page(BaseModel, Generic[Item]):
    """Items of a list, and the cursor of the next page; the last page has none."""

    items: list[Item]
    next_cursor: str | None = None


def page(
    found: Sequence[Row],
    seek: Seek[Position],
    view: Callable[[Row], Item],
    position: Callable[[Row], str | int],
) -> Page[Item]:
    """Return the page for the rows of `seek.peek()`: one row more shows that another page follows."""
    has_next = len(found) > seek.limit
    following = encode_cursor(position(found[seek.limit - 1]), seek.order) if has_next else None
    return Page(items=[view(row) for row in found[: seek.limit]], next_cursor=following)


def get_text_seek(
    cursor: CursorQuery = None, order: OrderQuery = "asc", limit: Limit = 50
) -> Seek[str]:
    after = None if cursor is None else _decoded(cursor, order)
    return Seek(after, order, limit)


def get_number_seek(
    cursor: CursorQuery = None, order: OrderQuery = "asc", limit: Limit = 50
) -> Seek[int]:
    """The page of a list that is ordered by number, the smallest first by default."""
    return Seek(_number(cursor, order), order, limit)


def get_newest_seek(
    cursor: CursorQuery = None, order: OrderQuery = "desc", limit: Limit = 50
) -> Seek[int]:
    """The page of a list that is ordered by number, the largest first by default."""
    return Seek(_number(cursor, order), order, limit)


def get_offset_seek(cursor: CursorQuery = None, limit: Limit = 50) -> Seek[int]:
    """The page of a list that can be read in one order only."""
    return Seek(_number(cursor, "asc"), limit=limit)


def encode_cursor(position: str | int, order: Order = "asc") -> str:
    """Encode a position of a list in that order as an opaque cursor."""
    return base64.urlsafe_b64encode(f"{order}:{position}".encode()).decode().rstrip("=")


def _number(cursor: str | None, order: Order) -> int | None:
    if cursor is None:
        return None
    text = _decoded(cursor, order)
    # The length first: Python refuses to convert thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_NUMBER))):
        raise foreign_cursor(cursor)
    if int(text) > LARGEST_NUMBER:
        raise foreign_cursor(cursor)
    return int(text)


def _decoded(cursor: str, order: Order) -> str:
    """The position. Raises Unprocessable also for a cursor of the other order, which would skip or repeat items."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error) as error:
        raise foreign_cursor(cursor) from error
    of_order, colon, position = text.partition(":")
    if not colon or of_order not in ("asc", "desc") or "\0" in position:
        raise foreign_cursor(cursor)
    if of_order != order:
        message = f"the cursor is of a list with order={of_order}; give the same order with it"
        raise Unprocessable(
            "the cursor is of another order", FieldProblem("cursor", message, cursor)
        )
    return position


def foreign_cursor(cursor: str) -> Unprocessable:
    """The error for a cursor that no page has returned."""
    message = "give the next_cursor of an earlier page, unchanged"
    return Unprocessable("unknown cursor", FieldProblem("cursor", message, cursor))


TextSeek = Annotated[Seek[str], Depends(get_text_seek)]
NumberSeek = Annotated[Seek[int], Depends(get_number_seek)]
NewestSeek = Annotated[Seek[int], Depends(get_newest_seek)]
OffsetSeek = Annotated[Seek[int], Depends(get_offset_seek)]
