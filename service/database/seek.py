"""Seek pagination: where a page of a list begins, in which order, and how many rows it has."""

from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Self, TypeVar

from sqlalchemy import ColumnElement, Select

Order = Literal["asc", "desc"]
Position = TypeVar("Position", int, str)


@dataclass(frozen=True)
class Seek(Generic[Position]):
    """A page of a list that is ordered by one unique column: up to `limit` rows beyond `after`.

    `after` is the position of the last row of the page before; None: from the first, or for `desc` the last row.
    """

    after: Position | None = None
    order: Order = "asc"
    limit: int = 50

    def peek(self) -> Self:
        """The same page and one row more, which shows whether another page follows."""
        return replace(self, limit=self.limit + 1)

    def restrict(self, query: Select[Any], column: ColumnElement[Position]) -> Select[Any]:
        """Order a query by the column, and restrict it to the rows of this page."""
        is_descending = self.order == "desc"
        if self.after is not None:
            query = query.where(column < self.after if is_descending else column > self.after)
        return query.order_by(column.desc() if is_descending else column.asc()).limit(self.limit)
