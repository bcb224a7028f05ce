"""Payloads of many rows, and their fields in tables for filters.

There is one table for each kind of value, with an entry for each value, several where it is a list. It has all fields,
one after the other, so memory is proportional to the payloads: a payload of 4 KiB can have 400 unique fields, and an
array for each field would take 50 times its bytes.
"""

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
RowNumbers = NDArray[np.int32]
FieldNumbers = NDArray[np.int32]

# One million payloads can have more bytes than 32-bit offsets reach.
_TEXTS = pa.large_string()


class Kind(StrEnum):
    """Kinds of values that a filter can compare; others (null, objects, nested lists) match nothing."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"


# Kinds by exact type, because True is an int as well.
_KINDS: Mapping[type, Kind] = {
    str: Kind.TEXT,
    int: Kind.NUMBER,
    float: Kind.NUMBER,
    bool: Kind.FLAG,
}
_TYPES = {Kind.TEXT: _TEXTS, Kind.NUMBER: pa.float64(), Kind.FLAG: pa.bool_()}


@dataclass(frozen=True, eq=False)
class Column:
    """Values of one field and kind with their rows, in the order of rows."""

    rows: RowNumbers
    values: pa.Array

    def rows_where(self, condition: Callable[[pa.Array], pa.BooleanArray]) -> RowNumbers:
        """Return rows of which at least one value satisfies the condition; a row may occur twice."""
        holds: Mask = condition(self.values).to_numpy(zero_copy_only=False)
        return self.rows[holds]


@dataclass(frozen=True, eq=False)
class _Table:
    """All values of one kind. Those of field number f are from `starts[f]` to `starts[f + 1]`."""

    names: pa.LargeStringArray
    starts: NDArray[np.int64]
    rows: RowNumbers
    values: pa.Array

    @classmethod
    def of(
        cls, names: pa.Array, fields: FieldNumbers, rows: RowNumbers, values: pa.Array
    ) -> "_Table":
        """Make a table of entries in the order of rows; `fields` are indices into `names`."""
        counts = np.bincount(fields, minlength=len(names))
        used = np.flatnonzero(counts)
        order = np.argsort(fields, kind="stable")
        starts = np.concatenate([[0], np.cumsum(counts[used])])
        return cls(names.take(pa.array(used)), starts, rows[order], values.take(pa.array(order)))

    def column(self, name: str) -> Column | None:
        number = pc.index(self.names, pa.scalar(name, _TEXTS)).as_py()
        if number < 0:
            return None
        start, end = self.starts[number : number + 2].tolist()
        return Column(self.rows[start:end], self.values.slice(start, end - start))

    @property
    def fields(self) -> FieldNumbers:
        """The number of each entry's field."""
        return np.repeat(np.arange(len(self.names), dtype=np.int32), np.diff(self.starts))

    @property
    def nbytes(self) -> int:
        parts = (self.names, self.starts, self.rows, self.values)
        return sum(part.nbytes for part in parts)


@dataclass(frozen=True, eq=False)
class Payloads:
    """`texts`: each row's JSON object, or null."""

    texts: pa.LargeStringArray
    tables: Mapping[Kind, _Table]

    @classmethod
    def of(cls, texts: pa.StringArray) -> "Payloads":
        """Parse all payloads."""
        # Numbers in an array: Python objects take four times as much.
        entries = {kind: _Entries(array("d") if kind == Kind.NUMBER else []) for kind in Kind}
        for row, text in enumerate(texts.to_pylist()):
            payload = {} if text is None else json.loads(text)
            for name, value in payload.items():
                if type(value) is list:
                    for kind, values in _by_kind(value):
                        entries[kind].extend(name, row, values)
                elif type(value) in _KINDS:
                    entries[_KINDS[type(value)]].append(name, row, value)
        return cls(
            texts.cast(_TEXTS), {kind: each.table(_TYPES[kind]) for kind, each in entries.items()}
        )

    @classmethod
    def joined(cls, parts: Sequence["Payloads"], kept: Sequence[Mask]) -> "Payloads":
        """Concatenate the kept rows of each part, without parsing again."""
        texts = [each.texts.filter(pa.array(keep)) for each, keep in zip(parts, kept, strict=True)]
        starts = np.cumsum([0, *(len(each) for each in texts)]).tolist()
        tables = {}
        for kind in Kind:
            pieces = [
                _kept(each.tables[kind], keep, start)
                for each, keep, start in zip(parts, kept, starts, strict=False)
            ]
            tables[kind] = _together(pieces)
        return cls(pa.concat_arrays(texts), tables)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def nbytes(self) -> int:
        """Bytes of texts and tables."""
        return sum([self.texts.nbytes, *(table.nbytes for table in self.tables.values())])

    def column(self, name: str, kind: Kind) -> Column | None:
        """Return the values of that kind in the field of this name; None where there are none."""
        return self.tables[kind].column(name)


@dataclass
class _Entries:
    """Entries of one kind while payloads are parsed."""

    values: "array[float] | list[object]" = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    fields: "array[int]" = field(default_factory=lambda: array("i"))
    rows: "array[int]" = field(default_factory=lambda: array("i"))

    def append(self, name: str, row: int, value: Any) -> None:
        self.fields.append(self.numbers.setdefault(name, len(self.numbers)))
        self.rows.append(row)
        self.values.append(value)

    def extend(self, name: str, row: int, values: Sequence[Any]) -> None:
        number = self.numbers.setdefault(name, len(self.numbers))
        self.fields.extend(array("i", [number]) * len(values))
        self.rows.extend(array("i", [row]) * len(values))
        self.values.extend(values)

    def table(self, type_: pa.DataType) -> _Table:
        names = pa.array(list(self.numbers), _TEXTS)
        fields, rows = np.array(self.fields, np.int32), np.array(self.rows, np.int32)
        return _Table.of(names, fields, rows, pa.array(self.values, type_))


@dataclass(frozen=True, eq=False)
class _Piece:
    """Entries of a table, without some of its rows, with new row numbers."""

    names: pa.LargeStringArray
    fields: FieldNumbers
    rows: RowNumbers
    values: pa.Array


def _kept(table: _Table, keep: Mask, start: int) -> _Piece:
    new_numbers = np.cumsum(keep, dtype=np.int32) - 1 + start
    entries = keep[table.rows]
    rows = new_numbers[table.rows[entries]].astype(np.int32)
    return _Piece(table.names, table.fields[entries], rows, table.values.filter(pa.array(entries)))


def _together(pieces: Sequence[_Piece]) -> _Table:
    """Concatenate pieces into one table; the same name is the same field."""
    names = pa.concat_arrays([piece.names for piece in pieces]).dictionary_encode()
    numbers = names.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    firsts = np.cumsum([0, *(len(piece.names) for piece in pieces)])
    fields = [numbers[piece.fields + first] for piece, first in zip(pieces, firsts, strict=False)]
    return _Table.of(
        names.dictionary,
        np.concatenate(fields),
        np.concatenate([piece.rows for piece in pieces]),
        pa.concat_arrays([piece.values for piece in pieces]),
    )


def _by_kind(values: Sequence[Any]) -> Iterator[tuple[Kind, Sequence[Any]]]:
    """Yield the values of a list by kind, in their order."""
    kinds = {_KINDS.get(each) for each in set(map(type, values))}
    for kind in kinds:
        if kind is None:
            continue
        if len(kinds) == 1:
            yield kind, values
        else:
            yield kind, [each for each in values if _KINDS.get(type(each)) == kind]
