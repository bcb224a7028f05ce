"""Output: tables or JSON on stdout; errors and progress on stderr."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

T = TypeVar("T", bound=BaseModel)
Cell = str | int | float | datetime | Text | None
Columns = Mapping[str, Callable[[T], Cell]]

# Output that is not a terminal is not wrapped.
_UNBOUNDED = 1000
# Columns whose long words may be folded, and the width to which they fold.
_BREAKABLE = frozenset({"disabled", "payload", "reason", "state", "url"})
_FOLDED = 20


def stdout() -> Console:
    """Return a console for stdout. Created on each call, because the terminal may be resized."""
    return _console(sys.stdout.isatty(), stderr=False)


def stderr() -> Console:
    """Return a console for stderr: errors and progress."""
    return _console(sys.stderr.isatty(), stderr=True)


def _console(is_terminal: bool, *, stderr: bool) -> Console:
    width = None if is_terminal or os.environ.get("COLUMNS") else _UNBOUNDED
    return Console(stderr=stderr, width=width)


def print_json(document: BaseModel) -> None:
    """Print one line of JSON on stdout."""
    print(document.model_dump_json(), flush=True)


def show(document: T, as_json: bool, view: Callable[[T], RenderableType]) -> None:
    """Print an object as JSON, or as `view` renders it."""
    if as_json:
        print_json(document)
    else:
        stdout().print(view(document))


def show_all(
    items: Iterable[T], as_json: bool, columns: Columns[T], empty: str, limit: int | None = None
) -> None:
    """Print a list, or its first `limit` items, as JSON lines or as a table.

    `empty` is the message for an empty table.
    """
    items = islice(items, limit)
    if as_json:
        for item in items:
            print_json(item)
        return
    found = list(items)
    stdout().print(
        table(found, columns) if found else Text(empty, style="dim"), soft_wrap=not found
    )


def say(message: str, document: BaseModel, as_json: bool) -> None:
    """Print a one-line message, or the result as JSON."""
    if as_json:
        print_json(document)
    else:
        stdout().print(Text(message), soft_wrap=True)


@dataclass(frozen=True)
class Grid:
    """A table that does not truncate words, so that ids and names can be copied.

    Columns wrap between words. If that is too wide, each row is a list of its values. Only the
    columns in `_BREAKABLE` wrap inside words. Without rows, nothing is printed, nor is the legend below it.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str | None = None
    legend: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [[as_text(cell) for cell in row] for row in self.rows]
        if not rows:
            return
        widths = self._widths(rows, options.max_width)
        if widths is None:
            if self.title:
                yield Text(self.title, style="italic")
            for row in rows:
                yield fields(dict(zip(self.headings, row, strict=True)))
        else:
            drawn = Table(title=self.title, title_justify="left")
            for heading, width in zip(self.headings, widths, strict=True):
                drawn.add_column(Text(heading), width=width, overflow="fold")
            for row in rows:
                drawn.add_row(*row)
            yield drawn
        if self.legend:
            yield Text(self.legend, style="dim")

    def _widths(self, rows: Sequence[Sequence[Text]], width: int) -> list[int] | None:
        """Return the widths of columns that fit into `width`, or None if they cannot."""
        columns = [[row[index] for row in rows] for index in range(len(self.headings))]
        both = list(zip(self.headings, columns, strict=True))
        cells = [[Text(heading), *column] for heading, column in both]
        least = [_least(heading, column) for heading, column in both]
        # A space on both sides of a value, and a line between columns.
        spare = width - sum(least) - 3 * len(least) - 1
        if spare < 0:
            return None
        wanted = [max(map(_longest_line, column)) for column in cells]
        widths = list(least)
        # Columns that need least come first, so that few columns wrap.
        for index in sorted(range(len(widths)), key=lambda index: wanted[index] - least[index]):
            more = min(spare, max(0, wanted[index] - least[index]))
            widths[index] += more
            spare -= more
        return widths


def table(items: Sequence[T], columns: Columns[T], title: str | None = None) -> Grid:
    """Return a table with a row per item and a column per value."""
    rows = [[value(item) for value in columns.values()] for item in items]
    return Grid(list(columns), rows, title)


def fields(values: Mapping[str, Cell], title: str | None = None) -> RenderableType:
    """Return a list of names and values."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in values.items():
        grid.add_row(Text(name, style="bold"), as_text(value))
    lines: list[RenderableType] = [Text(title, style="bold underline")] if title else []
    return Group(*lines, grid, "")


def as_text(value: Cell) -> Text:
    """Format a value without markup, because names and messages may have brackets."""
    if isinstance(value, Text):
        return value
    if value is None or value == "":
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone():%Y-%m-%d %H:%M:%S %Z}")
    return Text(f"{value:.3f}" if isinstance(value, float) else str(value))


def _least(heading: str, cells: Iterable[Text]) -> int:
    """Return the smallest width of a column that does not break words."""
    words = [cell_len(word) for cell in cells for word in cell.plain.split()]
    longest = max(words, default=1)
    if heading in _BREAKABLE:
        longest = min(longest, _FOLDED)
    return max(longest, *(cell_len(word) for word in heading.split()))


def _longest_line(cell: Text) -> int:
    return max(map(cell_len, cell.plain.splitlines()), default=0)
