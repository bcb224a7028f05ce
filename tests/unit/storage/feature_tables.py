"""Small tables of paired features, right unless a test spoils them."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

WIDTHS = (4, 3)


def features(rows: int, width: int, kind: pa.DataType, seed: int = 0) -> pa.Array:
    """Random features as a fixed-size list."""
    values = np.random.default_rng(seed).normal(size=rows * width)
    flat = pa.array(values.astype(kind.to_pandas_dtype()), kind)
    return pa.FixedSizeListArray.from_arrays(flat, width)


def paired(rows: int = 10, start: int = 0, kind: pa.DataType | None = None) -> pa.Table:
    """A right table; ids from `start` on."""
    kind = kind or pa.float32()
    return pa.table(
        {
            "id": [f"row-{number}" for number in range(start, start + rows)],
            "label": [f"label-{number % 3}" for number in range(rows)],
            "feature_a": features(rows, WIDTHS[0], kind, seed=1 + start),
            "feature_b": features(rows, WIDTHS[1], kind, seed=2 + start),
        }
    )


def with_column(table: pa.Table, name: str, values: object) -> pa.Table:
    """The table with one column replaced."""
    return table.set_column(table.column_names.index(name), name, values)


def with_value(table: pa.Table, name: str, row: int, value: list[float | None] | None) -> pa.Table:
    """The table with one feature replaced."""
    column = table.column(name)
    values = column.to_pylist()
    values[row] = value
    return with_column(table, name, pa.array(values, column.type))


def claim_in_footer(path: Path, declared: int, claims: Mapping[int, int]) -> None:
    """Write other numbers into a footer, by place among the fields that have the declared one."""
    whole = path.read_bytes()
    size = int.from_bytes(whole[-8:-4], "little")
    pages, footer = whole[: -8 - size], whole[-8 - size : -8]
    parts = footer.split(_number(declared))
    assert len(parts) > max(claims)
    changed = parts[0]
    for place, part in enumerate(parts[1:]):
        changed += _number(claims.get(place, declared)) + part
    path.write_bytes(pages + changed + struct.pack("<I", len(changed)) + b"PAR1")


def _number(value: int) -> bytes:
    """A field of Thrift's compact protocol one behind the last one: int64, zigzag, as a varint."""
    value, coded = value << 1, bytearray(b"\x16")
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*coded, value])
