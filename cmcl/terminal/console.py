"""What is printed: tables for people, JSON for programs. Everything that is no answer goes to stderr."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

T = TypeVar("T", bound=BaseModel)
Cell = str | int | float | datetime | Text | None
Columns = Mapping[str, Callable[[T], Cell]]

# Where nobody looks at a terminal, no line has to be broken.
_UNBOUNDED = 1000


def stdout() -> Console:
    """Made anew each time: the terminal may have been resized, or replaced by a test."""
    return _console(sys.stdout.isatty(), stderr=False)


def stderr() -> Console:
    """For what is no answer: errors, progress."""
    return _console(sys.stderr.isatty(), stderr=True)


def _console(is_terminal: bool, *, stderr: bool) -> Console:
    width = None if is_terminal or os.environ.get("COLUMNS") else _UNBOUNDED
    return Console(stderr=stderr, width=width)


def print_json(document: BaseModel) -> None:
    """One line of JSON on stdout."""
    print(document.model_dump_json(), flush=True)


def show(document: T, as_json: bool, view: Callable[[T], RenderableType]) -> None:
    """One thing: as JSON, or as `view` draws it."""
    if as_json:
        print_json(document)
    else:
        stdout().print(view(document))


def show_all(items: Iterable[T], as_json: bool, columns: Columns[T]) -> None:
    """A list: JSON lines, each as soon as it is there, or a table."""
    if as_json:
        for item in items:
            print_json(item)
    else:
        stdout().print(table(list(items), columns, stdout()))


def say(words: str, document: BaseModel, as_json: bool) -> None:
    """What was done: one line, or the answer as JSON."""
    if as_json:
        print_json(document)
    else:
        stdout().print(Text(words), soft_wrap=True)


def table(items: Sequence[T], columns: Columns[T], console: Console) -> RenderableType:
    """A row per item; where the terminal is too narrow for that, a line per value."""
    if not items:
        return Text("none", style="dim")
    drawn = Table(*columns)
    for item in items:
        drawn.add_row(*(as_text(value(item)) for value in columns.values()))
    unbounded = console.options.update(max_width=_UNBOUNDED)
    if Measurement.get(console, unbounded, drawn).minimum <= console.width:
        return drawn
    return Group(
        *(fields({title: value(item) for title, value in columns.items()}) for item in items)
    )


def fields(values: Mapping[str, Cell], title: str | None = None) -> RenderableType:
    """One thing as a list of its values."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in values.items():
        grid.add_row(Text(name, style="bold"), as_text(value))
    lines: list[RenderableType] = [Text(title, style="bold underline")] if title else []
    return Group(*lines, grid, "")


def as_text(value: Cell) -> Text:
    """Never as markup: names and messages may have brackets."""
    if isinstance(value, Text):
        return value
    if value is None or value == "":
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone():%Y-%m-%d %H:%M:%S}")
    return Text(f"{value:.3f}" if isinstance(value, float) else str(value))
