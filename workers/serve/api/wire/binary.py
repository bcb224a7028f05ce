"""Rows without JSON: raw floats back to back, or a stream of Arrow.

Shapes: B rows, F width of the raw feature.
"""

import struct
from collections.abc import Iterator

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pydantic import Field

from workers.serve.api.wire.rows import check_count, checked
from workers.serve.errors import InvalidRequest, shortened
from workers.serve.versions.loading import Float32Array

_COLUMN = "feature"
_LONGEST_REASON = 200
# What pyarrow raises for damaged bodies. Its own errors are ValueError, OSError and KeyError too; names
# that are no UTF-8 raise UnicodeDecodeError, which is a ValueError.
_DAMAGED = (pyarrow.ArrowException, ValueError, OSError, struct.error)
DTYPES = {name: np.dtype(name) for name in ("float32", "float16", "float64")}
# The query parameter `dtype`.
DTYPE = Field(
    default=None,
    description="of a body of raw numbers; by default float32",
    json_schema_extra={"enum": [*DTYPES]},
)

# Schemas of a thousand columns have less.
_MOST_METADATA_BYTES = 1 << 20
# Positions of fields in their tables: `Message.header`, `RecordBatch.compression`, `DictionaryBatch.data`.
_HEADER = 2
_COMPRESSION = 3
_DATA = 1


def dtype_of(name: str | None) -> np.dtype:
    """The parameter `dtype` of a raw body. Raises InvalidRequest."""
    found = DTYPES.get(name or "float32")
    if found is None:
        raise InvalidRequest(f"dtype is {name!r}; permitted are {', '.join(DTYPES)}", param="dtype")
    return found


def from_arrow(data: bytes, what: str, width: int, most: int) -> Float32Array:
    """The column `feature` of an IPC stream as B × F, at most so many rows. Raises InvalidRequest."""
    try:
        pieces = [_rows_of(column, what, width) for column in _columns(data, most)]
    except _DAMAGED as error:
        message = f"the body is no stream of Arrow: {str(error)[:_LONGEST_REASON]}"
        raise InvalidRequest(message, "input") from error
    rows_BF = np.concatenate(pieces) if pieces else np.empty((0, width), np.float32)
    check_count(len(rows_BF), most)
    return checked(rows_BF.astype(np.float64 if rows_BF.dtype.itemsize == 8 else np.float32))


def _columns(data: bytes, most: int) -> Iterator[pyarrow.Array]:
    """Of each batch; no further one is decoded once there are too many rows."""
    buffer = pyarrow.py_buffer(data)
    check_messages(buffer, most)
    with pyarrow.ipc.open_stream(buffer) as whole:
        place = _place_of_column(whole.schema)
    options = pyarrow.ipc.IpcReadOptions(use_threads=False, included_fields=[place])
    rows = 0
    with pyarrow.ipc.open_stream(buffer, options=options) as batches:
        for batch in batches:
            rows += batch.num_rows
            if rows > most:
                raise InvalidRequest(
                    f"input has more than {most} rows; permitted are 1 to {most}", "input"
                )
            batch.validate(full=True)
            yield batch.column(0)


def _rows_of(column: pyarrow.Array, what: str, width: int) -> NDArray[np.floating]:
    if column.null_count or column.flatten().null_count:
        raise InvalidRequest(f"column {_COLUMN!r} has nulls; permitted are none", "input")
    lengths = pyarrow.compute.list_value_length(column).unique().to_pylist()
    if lengths not in ([], [width]):
        raise InvalidRequest(
            f"column {_COLUMN!r} has lists of {lengths[:5]} numbers; {what} has {width}",
            "input",
            "wrong_width",
        )
    rows_BF: NDArray[np.floating] = column.flatten().to_numpy(zero_copy_only=False)
    return rows_BF.reshape(-1, width)


def _place_of_column(schema: pyarrow.Schema) -> int:
    places: list[int] = schema.get_all_field_indices(_COLUMN)
    if len(places) != 1:
        names = ", ".join(map(shortened, schema.names[:20]))
        raise InvalidRequest(
            f"the body has {len(places)} columns {_COLUMN!r}, permitted is one; its first are: {names}",
            "input",
        )
    kind = schema.field(places[0]).type
    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind)
    if not is_list or not pyarrow.types.is_floating(kind.value_type):
        raise InvalidRequest(
            f"column {_COLUMN!r} is of {str(kind)[:_LONGEST_REASON]}; permitted are lists of float16, "
            "float32 or float64",
            "input",
        )
    return places[0]


def check_messages(data: pyarrow.Buffer, most: int) -> None:
    """Raises InvalidRequest for more batches than `most`, for large metadata, for compression.

    Where the stream is damaged it raises what pyarrow does, or struct.error.
    """
    batches = 0
    for message in pyarrow.ipc.MessageReader.open_stream(pyarrow.BufferReader(data)):
        size = message.metadata.size
        if size > _MOST_METADATA_BYTES:
            raise InvalidRequest(
                f"a message of the stream of Arrow has {size} bytes of metadata; permitted are "
                f"{_MOST_METADATA_BYTES}",
                "input",
            )
        batches += message.type != "schema"
        if batches > most:
            raise InvalidRequest(
                f"the stream of Arrow has more than {most} batches; permitted are as many as rows",
                "input",
            )
        if _is_compressed(message):
            raise InvalidRequest(
                "the stream of Arrow has compressed buffers; permitted are uncompressed ones alone "
                "(no `compression` in the options of the writer)",
                "input",
                "compressed_body",
            )


def _is_compressed(message: pyarrow.ipc.Message) -> bool:
    if message.type not in ("record batch", "dictionary"):
        return False
    metadata = message.metadata.to_pybytes()
    batch = _table_in(metadata, _root(metadata), _HEADER)
    if batch is not None and message.type == "dictionary":
        batch = _table_in(metadata, batch, _DATA)
    return batch is not None and _place(metadata, batch, _COMPRESSION) is not None


def _root(metadata: bytes) -> int:
    (offset,) = struct.unpack_from("<I", metadata)
    return int(offset)


def _table_in(metadata: bytes, table: int, field: int) -> int | None:
    """The position of the table that this field refers to."""
    place = _place(metadata, table, field)
    if place is None:
        return None
    (offset,) = struct.unpack_from("<I", metadata, place)
    return place + int(offset)


def _place(metadata: bytes, table: int, field: int) -> int | None:
    """The position of a field of a table; None where it is omitted."""
    (back,) = struct.unpack_from("<i", metadata, table)
    (size,) = struct.unpack_from("<H", metadata, table - back)
    entry = 4 + 2 * field
    if entry + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, table - back + entry)
    return table + offset if offset else None
