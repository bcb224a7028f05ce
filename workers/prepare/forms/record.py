"""Records of files with raw rows, the protocol of forms, which read them, and the check of a file's columns."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from workers.prepare.raw_rows import ROWS_IN_A_UNIT, RawForm, RawUnit, SideSpec
from workers.prepare.stored_file import StoredFile

# Longer records are refused. Larger items must be in separate files.
LONGEST_RECORD = 64 << 20
_BYTES_IN_A_UNIT = 256 << 20
_MOST_SPOOLED = 16 << 30

Sides = tuple[SideSpec, SideSpec]

_SIMILAR = 0.75
_LONGEST_LIST = 30


class BadRow(ValueError):
    """A row that cannot be used. The message is the reason, for the user."""


@dataclass(frozen=True)
class FileName:
    """An item in a separate file. `name`: its name or address, as in the row."""

    name: str


@dataclass(frozen=True)
class Member:
    """An item in a member of the tar: `size` bytes from `offset`."""

    offset: int
    size: int


class Record(NamedTuple):
    """One record of a file.

    `start`, `stop`: its bytes. `values` by column: text as str or bytes, numbers as a list or array,
    media as bytes or Member; missing ones are absent or None. `problem`: why it cannot be read.
    `seal`: bytes that differ if the record changes. `begins_unit`: whether a unit begins with it; set when
    a file is planned. `line`: the number of its line, in forms of lines. `source`: where the user finds it, in tars.
    """

    start: int
    stop: int
    values: Mapping[str, Any]
    seal: bytes
    problem: str | None = None
    begins_unit: bool = False
    line: int = 0
    source: str = ""


@dataclass(frozen=True)
class Form:
    """One form of files, such as CSV.

    `scan` yields all records of a file, with at least their `id` and `label`; `columns` of a CSV header. It
    raises InvalidDataset if the file cannot be used as a whole. `read` yields the records of a unit.
    """

    name: RawForm
    scan: Callable[[StoredFile, Sides], "Scan"]
    read: Callable[[StoredFile, RawUnit, Sides], Iterator[Record]]


@dataclass(frozen=True)
class Scan:
    """All records of a file. `has_labels`: None if it is known only after all records are read."""

    records: Iterator[Record]
    columns: tuple[str, ...] = ()
    has_labels: bool | None = None


class UnitCutter:
    """Decides where units begin: after a number of rows or bytes, so that the raw items of a unit fit on the disk."""

    def __init__(self, sides: Sides) -> None:
        largest = sum(
            side.encoder.max_item_bytes
            for side in sides
            if side.encoder is not None and side.encoder.takes != "numbers"
        )
        self.most_rows = max(1, min(ROWS_IN_A_UNIT, _MOST_SPOOLED // max(1, largest)))
        self._rows = self._bytes = 0

    def begins(self, size: int, rows: int = 1) -> bool:
        """Return whether the next record, or the next records that must stay together, begin a unit.

        `size`: their bytes. `rows`: their number.
        """
        is_full = self._rows + rows > self.most_rows or self._bytes + size > _BYTES_IN_A_UNIT
        begins = self._rows == 0 or is_full
        if begins:
            self._rows = self._bytes = 0
        self._rows += rows
        self._bytes += size
        return begins

    def rows_of(self, bytes_per_row: float) -> int:
        """Return the number of rows of a unit whose rows have about this size."""
        return max(1, min(self.most_rows, int(_BYTES_IN_A_UNIT / max(1.0, bytes_per_row))))


def check_columns(
    found: Collection[str], sides: Sides, file: StoredFile, media_inline: bool, of: str = "column"
) -> None:
    """Check that a file has an id and both sides. `media_inline`: whether columns can hold bytes of media."""
    if "id" not in found:
        raise file.wrong(f"{of} 'id' is missing; {_listed(found)}{_meant('id', found)}")
    for side in sides:
        names = columns_of(side, media_inline)
        if not any(name in found for name in names):
            raise file.wrong(
                f"it has no {of} for {side.modality}: {_wanted(side, names)}; {_listed(found)}"
                f"{_meant(names, found)}"
            )
    if "label" not in found and (like := get_close_matches("label", found, 1, _SIMILAR)):
        raise file.wrong(
            f"{of} {like[0]!r} looks like 'label'; rename it, or leave it out if it is none"
        )


def columns_of(side: SideSpec, media_inline: bool) -> tuple[str, ...]:
    """Return the names of columns that can hold one side."""
    named = f"{side.modality}_file_name"
    if side.encoder is None or side.encoder.takes == "numbers":
        return (side.modality,)
    if side.encoder.takes == "text" or media_inline:
        return (side.modality, named)
    return (named,)


def known_columns(sides: Sides) -> tuple[str, ...]:
    """Return all columns that are read, of any form."""
    of_sides = (name for side in sides for name in columns_of(side, media_inline=True))
    return ("id", "label", *of_sides)


def _wanted(side: SideSpec, names: Iterable[str]) -> str:
    """Describe what the columns must hold."""
    listed = " or ".join(repr(name) for name in names)
    if side.encoder is None:
        return (
            f"it has no encoder, so {listed} must hold its features, lists of {side.width} numbers"
        )
    if side.encoder.takes == "numbers":
        return f"{listed} must hold lists of numbers"
    if side.encoder.takes == "text":
        return f"{listed} must hold texts or names of files"
    return f"{listed} must hold {side.encoder.takes} files"


def _listed(found: Collection[str]) -> str:
    """List the columns of the file."""
    names = [str(name)[:100] for name in list(found)[:_LONGEST_LIST]]
    more = "" if len(found) <= _LONGEST_LIST else f" and {len(found) - _LONGEST_LIST} more"
    return f"found {names}{more}"


def _meant(wanted: str | Iterable[str], found: Collection[str]) -> str:
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if like := get_close_matches(name, [str(each) for each in found], 1, _SIMILAR):
            return f"; was {like[0]!r} meant to be {name!r}?"
    return ""
