"""Pages of a list: the cursor of a request, and the page of its response."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

from service.errors import FieldProblem, Unprocessable

# The largest number that a column can hold.
LARGEST_NUMBER = 2**31 - 1

Item = TypeVar("Item", bound=BaseModel)
Row = TypeVar("Row")


class Page(BaseModel, Generic[Item]):
    """Items of a list, and the cursor of the next page; the last page has none."""

    items: list[Item]
    next_cursor: str | None = None


def page(
    found: Sequence[Row],
    limit: int,
    view: Callable[[Row], Item],
    position: Callable[[Row], str | int],
) -> Page[Item]:
    """Return the page for up to `limit + 1` rows: one row more shows that another page follows."""
    following = encode_cursor(position(found[limit - 1])) if len(found) > limit else None
    return Page(items=[view(row) for row in found[:limit]], next_cursor=following)


def get_text_cursor(cursor: Annotated[str | None, Query()] = None) -> str | None:
    """The cursor of a list that is ordered by name."""
    return None if cursor is None else _decoded(cursor)


def get_number_cursor(cursor: Annotated[str | None, Query()] = None) -> int | None:
    """The cursor of a list that is ordered by number."""
    if cursor is None:
        return None
    text = _decoded(cursor)
    # The length first: Python refuses to convert thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_NUMBER))):
        raise _foreign_cursor(cursor)
    if int(text) > LARGEST_NUMBER:
        raise _foreign_cursor(cursor)
    return int(text)


def encode_cursor(position: str | int) -> str:
    """Encode a position as an opaque cursor."""
    return base64.urlsafe_b64encode(str(position).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> str:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error) as error:
        raise _foreign_cursor(cursor) from error
    if "\0" in text:
        raise _foreign_cursor(cursor)
    return text


def _foreign_cursor(cursor: str) -> Unprocessable:
    message = "give the next_cursor of an earlier page, unchanged"
    return Unprocessable("unknown cursor", FieldProblem("cursor", message, cursor))


Limit = Annotated[int, Query(ge=1, le=200, description="items of one page")]
TextCursor = Annotated[str | None, Depends(get_text_cursor)]
NumberCursor = Annotated[int | None, Depends(get_number_cursor)]
