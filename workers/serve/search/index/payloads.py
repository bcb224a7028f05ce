"""Payloads of many rows, and their fields as columns that a filter can go through.

A field's column has an entry for each row that has it, several where its value is a list, so memory
follows what payloads hold, however many different fields they have.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
RowNumbers = NDArray[np.int32]


class Kind(StrEnum):
    """What a filter can compare; other values (null, objects, lists in lists) match nothing."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"


_TYPES = {Kind.TEXT: pa.string(), Kind.NUMBER: pa.float64(), Kind.FLAG: pa.bool_()}


@dataclass(frozen=True, eq=False)
class Column:
    """Values of one field and kind, and the row that each belongs to, in the order of rows."""

    rows: RowNumbers
    values: pa.Array

    def rows_where(self, condition: Callable[[pa.Array], pa.BooleanArray]) -> RowNumbers:
        """Rows of which at least one value satisfies it; a row may be named twice."""
        holds: Mask = condition(self.values).to_numpy(zero_copy_only=False)
        return self.rows[holds]


@dataclass(frozen=True, eq=False)
class Payloads:
    """`texts`: each row's JSON object, or null. `columns`: by field and kind."""

    texts: pa.StringArray
    columns: Mapping[tuple[str, Kind], Column]

    @classmethod
    def of(cls, texts: pa.StringArray) -> "Payloads":
        """Read each payload once."""
        entries: dict[tuple[str, Kind], tuple[list[int], list[object]]] = {}
        for row, text in enumerate(texts.to_pylist()):
            for field, kind, value in _values(text):
                rows, values = entries.setdefault((field, kind), ([], []))
                rows.append(row)
                values.append(value)
        return cls(
            texts,
            {
                key: Column(np.array(rows, np.int32), pa.array(values, _TYPES[key[1]]))
                for key, (rows, values) in entries.items()
            },
        )

    @classmethod
    def joined(cls, parts: Sequence["Payloads"], kept: Sequence[Mask]) -> "Payloads":
        """The rows that are kept of each part, one part after the other; nothing is read again."""
        texts = [each.texts.filter(pa.array(keep)) for each, keep in zip(parts, kept, strict=True)]
        starts = np.cumsum([0, *(len(each) for each in texts)])
        keys = {key for each in parts for key in each.columns}
        columns = {}
        for key in keys:
            pieces = [
                _kept(each.columns[key], keep, int(start))
                for each, keep, start in zip(parts, kept, starts, strict=False)
                if key in each.columns
            ]
            columns[key] = Column(
                np.concatenate([piece.rows for piece in pieces]),
                pa.concat_arrays([piece.values for piece in pieces]),
            )
        return cls(pa.concat_arrays(texts), columns)

    def __len__(self) -> int:
        return len(self.texts)


def _kept(column: Column, keep: Mask, start: int) -> Column:
    new_numbers = np.cumsum(keep, dtype=np.int32) - 1 + start
    entries = keep[column.rows]
    rows = new_numbers[column.rows[entries]].astype(np.int32)
    return Column(rows, column.values.filter(pa.array(entries)))


def _values(text: str | None) -> Iterator[tuple[str, Kind, object]]:
    """Each value that a filter can compare, with its field."""
    payload = {} if text is None else json.loads(text)
    for field, value in payload.items():
        for each in value if isinstance(value, list) else (value,):
            if isinstance(each, bool):
                yield field, Kind.FLAG, each
            elif isinstance(each, int | float):
                yield field, Kind.NUMBER, float(each)
            elif isinstance(each, str):
                yield field, Kind.TEXT, each
