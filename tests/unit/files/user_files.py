"""The same few rows in every format that users may send."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from cmcl.storage.versions import digests_of_file
from workers.files.columns import Side, UserFile, check_rows
from workers.files.formats import format_of

URI = "s3://bucket/theirs"
SIDES = (Side("feature_a", "image", 4), Side("feature_b", "text", 3))
ROWS = 20
Arrays = dict[str, Any]

WIDTHS = (4, 3)


def arrays(rows: int = ROWS, kind: str = "float32") -> Arrays:
    """Features of both sides, under the names of the columns."""
    generator = np.random.default_rng(7)
    return {side.column: generator.normal(size=(rows, side.width)).astype(kind) for side in SIDES}


def table(values: Arrays) -> pa.Table:
    """With ids, as Parquet and Arrow must have them."""
    rows = len(values["feature_a"])
    columns: dict[str, pa.Array] = {"id": pa.array([f"row-{row}" for row in range(rows)])}
    for name, values_BI in values.items():
        flat = pa.array(np.ascontiguousarray(values_BI).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values_BI.shape[1])
    return pa.table(columns)


def write_parquet(path: Path, values: Arrays) -> None:
    pq.write_table(table(values), path)


def write_arrow_file(path: Path, values: Arrays) -> None:
    rows = table(values)
    with pa.ipc.new_file(path, rows.schema) as writer:
        writer.write_table(rows)


def write_arrow_stream(path: Path, values: Arrays) -> None:
    rows = table(values)
    with pa.ipc.new_stream(path, rows.schema) as writer:
        writer.write_table(rows)


def write_npz(path: Path, values: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **values)


def write_packed_npz(path: Path, values: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **values)


def write_safetensors(path: Path, values: Arrays) -> None:
    save_file(values, path)


WRITERS: dict[str, Callable[[Path, Arrays], None]] = {
    "parquet": write_parquet,
    "arrow file": write_arrow_file,
    "arrow stream": write_arrow_stream,
    "npz": write_npz,
    "packed npz": write_packed_npz,
    "safetensors": write_safetensors,
}
# Formats that hold named arrays.
NAMED = ("npz", "packed npz", "safetensors")


def opened(path: Path) -> UserFile:
    """The file as it is after the fetch."""
    return UserFile(path, URI, digests_of_file(path).sha256, SIDES)


def rows_of(path: Path) -> pa.Table:
    """All rows, in the internal form."""
    return pa.Table.from_batches(list(format_of(path, URI).read(opened(path))))


def check_file(path: Path, left_out: dict[int, str] | None = None) -> bytearray:
    """Check all rows of a file; see `check_rows`."""
    theirs = UserFile(path, URI, digests_of_file(path).sha256, SIDES, left_out)
    return check_rows(format_of(path, URI).read(theirs), theirs)


def features_of(rows: pa.Table, column: str) -> np.ndarray:
    """(rows, width), in the type that the column has."""
    lists = rows.column(column).combine_chunks()
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)


def features(rows: int, width: int, kind: pa.DataType, seed: int = 0) -> pa.Array:
    """Random features as a fixed-size list."""
    values = np.random.default_rng(seed).normal(size=rows * width)
    flat = pa.array(values.astype(kind.to_pandas_dtype()), kind)
    return pa.FixedSizeListArray.from_arrays(flat, width)


def paired(rows: int = 10, start: int = 0, kind: pa.DataType | None = None) -> pa.Table:
    """A valid table; ids from `start` on."""
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


def write_encrypted(path: Path, plaintext_footer: bool) -> None:
    """Parquet with an encrypted column."""
    import pyarrow.parquet.encryption as crypt

    class Client(crypt.KmsClient):
        def __init__(self, _config: object) -> None:
            super().__init__()

        def wrap_key(self, key_bytes: bytes, _master: str) -> bytes:
            return key_bytes.hex().encode()

        def unwrap_key(self, wrapped_key: bytes, _master: str) -> bytes:
            return bytes.fromhex(wrapped_key.decode())

    factory = crypt.CryptoFactory(Client)
    plan = crypt.EncryptionConfiguration(
        footer_key="master", column_keys={"master": ["id"]}, plaintext_footer=plaintext_footer
    )
    properties = factory.file_encryption_properties(crypt.KmsConnectionConfig(), plan)
    table = paired()
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
