"""Lists that are searched, sorted and turned over: what an address asks for, and the rows that it finds.

One query finds the positions of the rows of a page, for every kind of list. The list of the API then reads these rows, so
that the page shows nothing that the API would not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Column, Select, case, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from service.context import Context
from service.core.errors import FieldProblem, Unprocessable
from service.database.engine import Position, Seek
from service.database.tables import datasets, jobs, models, versions

_ROWS = 50


@dataclass(frozen=True)
class Listing:
    """A kind of list: the unique column that its rows are read by, the columns that are searched, and those that can be
    sorted by, the default first. A name with a minus is sorted downwards at first.
    """

    position: Column[Any]
    searched: tuple[Column[Any], ...]
    sorts: Mapping[str, Column[Any]]


MODELS = Listing(
    models.c.name,
    (models.c.name,),
    {"name": models.c.name, "-newest": models.c.head, "-created": models.c.created_at},
)
DATASETS = Listing(
    datasets.c.sequence,
    (datasets.c.name, datasets.c.id),
    {"-posted": datasets.c.sequence, "name": datasets.c.name, "model": datasets.c.model},
)
JOBS = Listing(
    jobs.c.sequence,
    (jobs.c.dataset_name, jobs.c.id),
    {
        "-posted": jobs.c.sequence,
        "name": jobs.c.dataset_name,
        "model": jobs.c.model,
        "state": jobs.c.state,
    },
)
VERSIONS = Listing(
    versions.c.number,
    (versions.c.dataset_name, versions.c.pair_first, versions.c.pair_second),
    {
        "-version": versions.c.number,
        "name": versions.c.dataset_name,
        "-drift": versions.c.max_drift,
        "-recall": versions.c.mean_recall,
    },
)


class Wanted(BaseModel):
    """What the address asks for: a part of a name, the column to sort by, and the number of the page."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    q: str = Field(default="", max_length=80, pattern=r"^[^\x00]*$")
    sort: str = Field(default="", max_length=20)
    page: int = Field(default=1, ge=1, le=100_000)


WantedQuery = Annotated[Wanted, Query()]


@dataclass(frozen=True)
class _Chosen(Seek[Position]):
    """The rows at these positions, in their order."""

    positions: tuple[Position, ...] = ()

    def restrict(self, query: Select[Any], column: ColumnElement[Position]) -> Select[Any]:
        places = {position: place for place, position in enumerate(self.positions)}
        chosen = query.where(column.in_(places))
        return chosen.order_by(case(places, value=column)) if places else chosen


@dataclass(frozen=True)
class Found:
    """A page of a list: `seek` reads its rows, of which there are `total` on all pages."""

    seek: Seek[Any]
    total: int
    page: int
    q: str
    sort: str
    is_default: bool

    @property
    def pages(self) -> int:
        return -(-self.total // _ROWS)

    @property
    def first(self) -> int:
        """The number of its first row; of the last one: `first` and the rows of a page."""
        return (self.page - 1) * _ROWS + 1

    @property
    def last(self) -> int:
        return min(self.page * _ROWS, self.total)

    def turned(self, sort: str) -> tuple[str, str]:
        """The `aria-sort` of a column, and the sort that its head leads to."""
        name = sort.lstrip("-")
        if self.sort.lstrip("-") != name:
            return "none", sort
        return ("descending", name) if self.sort.startswith("-") else ("ascending", f"-{name}")


def find(context: Context, listing: Listing, where: Mapping[str, object], wanted: Wanted) -> Found:
    """Find the rows of a page. `where` has values for columns; None does not restrict. Raises Unprocessable.

    A page behind the last one is the last one: rows may have been deleted since.
    """
    columns = {name.lstrip("-"): column for name, column in listing.sorts.items()}
    default = next(iter(listing.sorts))
    sort = wanted.sort or default
    column = columns.get(sort.removeprefix("-"))
    if column is None:
        message = f"permitted: {', '.join(columns)}, each also with a minus before it"
        raise Unprocessable(message, FieldProblem("sort", message, sort))
    table = listing.position.table
    query = select(listing.position)
    if "deleted_at" in table.c:
        query = query.where(table.c.deleted_at.is_(None))
    for name, value in where.items():
        if value is not None:
            query = query.where(table.c[name] == value)
    if text := wanted.q.strip():
        query = query.where(
            or_(*(each.icontains(text, autoescape=True) for each in listing.searched))
        )
    down = sort.startswith("-")
    ordered = (each.desc() if down else each.asc() for each in (column, listing.position))
    with context.database.read() as connection:
        total = connection.scalar(select(func.count()).select_from(query.subquery())) or 0
        page = min(wanted.page, max(1, -(-total // _ROWS)))
        part = query.order_by(*(each.nulls_last() for each in ordered))
        rows = connection.scalars(part.offset((page - 1) * _ROWS).limit(_ROWS))
        positions = tuple(rows)
    seek = _Chosen[Any](limit=len(positions), positions=positions)
    is_default = page == 1 and not text and sort == default
    return Found(seek, total, page, wanted.q, sort, is_default)
