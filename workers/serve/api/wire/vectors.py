"""Vectors in bodies and responses: JSON, raw floats and Arrow; and rows that a head can read, every one checked.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import binascii
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import orjson
import pyarrow
import pybase64
from msgspec import Meta
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from workers.serve.api.wire.requests import Encoding
from workers.serve.background import Steps
from workers.serve.errors import (
    InvalidRequest,
    ModalityNotLearned,
    UnsupportedMedia,
    WrongRow,
    shortened,
)
from workers.serve.versions.loading import Float32Array, ServedVersion

JSON = "application/json"
RAW = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"

_FLOAT_BYTES = 4
# Bytes of a float32 as text, with its comma; most take 12 to 14.
_JSON_BYTES: Mapping[Encoding, int] = {"float": 16, "base64": 6}
# curl sends the second of these by default.
_MEANS_JSON = (JSON, "application/x-www-form-urlencoded", "text/plain", "")

# orjson holds the interpreter while it writes, and the event loop waits: 2.5 ms for this many numbers.
_NUMBERS_AT_ONCE = 1 << 15
_COLUMN = "feature"
_LONGEST_REASON = 200
# What pyarrow raises for damaged bodies. Its own errors are ValueError, OSError and KeyError too; names
# that are no UTF-8 raise UnicodeDecodeError, which is a ValueError.
_DAMAGED = (pyarrow.ArrowException, ValueError, OSError, struct.error)
# The query parameter `dtype`.
Dtype = Annotated[
    Literal["float32", "float16", "float64"],
    Meta(description="of a body of raw numbers; by default float32"),
]
# Schemas of a thousand columns have less.
_MOST_METADATA_BYTES = 1 << 20
# Positions of fields in their tables: `Message.header`, `RecordBatch.compression`, `DictionaryBatch.data`.
_HEADER = 2
_COMPRESSION = 3
_DATA = 1

# Rows are brought to unit length in float32, where squares underflow and overflow: outside of
# these lengths a row would silently lose its direction.
_SHORTEST = 1e-12
_LONGEST = 1e18
_WRONG_WIDTH = "wrong_width"


def content_type_of(request: Request) -> str:
    """Return JSON, RAW or ARROW, by the header Content-Type. Raises UnsupportedMedia."""
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind in _MEANS_JSON:
        return JSON
    if kind not in (RAW, ARROW):
        permitted = f"permitted are {JSON}, {RAW}, {ARROW}"
        raise UnsupportedMedia(f"Content-Type is {kind[:60]!r}; {permitted}")
    return kind


def binary_rows(
    form: str, body: bytes, dtype: Dtype, what: str, width: int, most: int
) -> Float32Array:
    """Return the rows of a RAW or ARROW body, at most `most`. Raises InvalidRequest."""
    if form == ARROW:
        return from_arrow(body, what, width, most)
    return from_bytes(body, np.dtype(dtype), what, width, most)


def answer_bytes(request: Request, numbers: int, encoding: Encoding) -> int:
    """Estimate the bytes of a response with `numbers` numbers and of the array that it is made of; or less."""
    if request.headers.get("accept", JSON) in (RAW, ARROW):
        return 2 * _FLOAT_BYTES * numbers
    return (_FLOAT_BYTES + _JSON_BYTES[encoding]) * numbers


def vectors_response(
    request: Request,
    vectors_BE: Float32Array,
    headers: Mapping[str, str],
    as_json: Callable[[], Steps[bytes]],
) -> Steps[Response]:
    """Return the response in the format of the header Accept; JSON unless it is exactly one of the others.

    In steps, if it is JSON: writing 4,096 rows takes a tenth of a second and more.
    """
    assert vectors_BE.ndim == 2
    assert vectors_BE.dtype == np.float32
    all_headers = {
        **headers,
        "x-rows": str(len(vectors_BE)),
        "x-width": str(vectors_BE.shape[1]),
    }
    accepted = request.headers.get("accept", JSON)
    if accepted == RAW:
        return Response(raw_embeddings(vectors_BE), media_type=RAW, headers=all_headers)
    if accepted == ARROW:
        return Response(arrow_embeddings(vectors_BE), media_type=ARROW, headers=all_headers)
    body = yield from as_json()
    return Response(body, media_type=JSON, headers=all_headers)


def json_embeddings(
    label: str, embeddings_BE: Float32Array, encoding: Encoding, **more: object
) -> Steps[bytes]:
    """Return OpenAI's list of embeddings, with further fields of the route; in steps of a few milliseconds.

    `usage` is constant, because OpenAI's clients read it.
    """
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    rest = orjson.dumps({"model": label, "usage": usage, **more})
    at_once = max(1, _NUMBERS_AT_ONCE // embeddings_BE.shape[1])
    pieces = []
    for start in range(0, len(embeddings_BE), at_once):
        if start:
            yield
        pieces.append(_json_rows(start, embeddings_BE[start : start + at_once], encoding))
    return b"".join([b'{"object":"list","data":[', b",".join(pieces), b"],", rest[1:]])


def _json_rows(start: int, embeddings_BE: Float32Array, encoding: Encoding) -> bytes:
    encoded: Iterable[object] = embeddings_BE
    if encoding == "base64":
        little_endian_BE = embeddings_BE.astype("<f4", copy=False)
        encoded = map(pybase64.b64encode_as_string, little_endian_BE)
    data = [
        {"object": "embedding", "index": index, "embedding": each}
        for index, each in enumerate(encoded, start)
    ]
    # A third of the time of json's own writers, and half of the bytes: float32 needs few digits.
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def raw_embeddings(embeddings_BE: Float32Array) -> bytes:
    """float32, little endian, row after row."""
    return embeddings_BE.astype("<f4", copy=False).tobytes()


def arrow_embeddings(embeddings_BE: Float32Array) -> bytes:
    """An IPC stream with one column, `embedding`."""
    flat = pyarrow.array(embeddings_BE.reshape(-1))
    column = pyarrow.FixedSizeListArray.from_arrays(flat, embeddings_BE.shape[1])
    batch = pyarrow.record_batch({"embedding": column})
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_arrow(data: bytes, what: str, width: int, most: int) -> Float32Array:
    """The column `feature` of an IPC stream as B × F, at most `most` rows. Raises InvalidRequest."""
    try:
        pieces = [_rows_of(column, what, width) for column in _columns(data, most)]
    except _DAMAGED as error:
        message = f"the body is no stream of Arrow: {str(error)[:_LONGEST_REASON]}"
        raise InvalidRequest(message, "input") from error
    rows_BF = np.concatenate(pieces) if pieces else np.empty((0, width), np.float32)
    check_count(len(rows_BF), most)
    return checked(rows_BF.astype(np.float64 if rows_BF.dtype.itemsize == 8 else np.float32))


def _columns(data: bytes, most: int) -> Iterator[pyarrow.Array]:
    """Yield the column of each batch; no further one is decoded once there are too many rows."""
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


def check_count(rows: int, most: int, field: str = "input") -> None:
    """Raises InvalidRequest if there are none or too many."""
    if not 1 <= rows <= most:
        raise InvalidRequest(f"{field} has {rows} rows; permitted are 1 to {most}", param=field)


def width_of(modality: str, version: ServedVersion, field: str = "modality") -> int:
    """Width of the features of a modality that the version has learned. Raises InvalidRequest, ModalityNotLearned."""
    found = version.spec.modalities.get(modality)
    if found is None:
        known = ", ".join(sorted(version.spec.modalities))
        raise InvalidRequest(
            f"modality is {shortened(modality)}; this model has {known}",
            param=field,
            code="unknown_modality",
        )
    if modality not in version.learned:
        raise ModalityNotLearned(
            f"{version.label} has not learned modality {modality!r}, so its embeddings would be noise; it has learned "
            f"{', '.join(sorted(version.learned))}. Post a dataset with {modality!r} to model {version.model!r}, or name a "
            "version that has learned it",
            field,
        )
    return found.width


def feature_label(modality: str) -> str:
    """Return how messages refer to a row."""
    return f"a feature of modality {modality!r}"


def from_lists(rows: Sequence[Sequence[float]], what: str, width: int) -> Float32Array:
    """Return the rows as B × F; `what` they are, for messages. Raises WrongRow for the first invalid row."""
    for index, row in enumerate(rows):
        if len(row) != width:
            reason = f"has {len(row)} numbers; {what} has {width}"
            raise WrongRow(index, reason, _WRONG_WIDTH)
    return checked(_array(rows, width))


def _array(rows: Sequence[Sequence[float]], width: int) -> NDArray[np.float64]:
    # In less than half of the time of `np.array`.
    pack = struct.Struct(f"={width}d").pack
    return np.frombuffer(b"".join([pack(*row) for row in rows])).reshape(len(rows), width)


def from_bytes(data: bytes, dtype: np.dtype, what: str, width: int, most: int) -> Float32Array:
    """Return rows of raw numbers, little endian, at most `most`. Raises InvalidRequest."""
    size = width * dtype.itemsize
    if not data or len(data) % size:
        found = f"the body has {len(data)} bytes of {dtype.name}"
        raise InvalidRequest(f"{found}; {what} has {width} numbers", "input", _WRONG_WIDTH)
    check_count(len(data) // size, most)
    rows_BF = np.frombuffer(data, dtype.newbyteorder("<")).reshape(-1, width)
    return checked(rows_BF.astype(np.float64 if dtype.itemsize == 8 else np.float32))


def from_base64(text: str, index: int, what: str, width: int) -> Float32Array:
    """One row (F) of float32. Raises WrongRow."""
    try:
        data = pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WrongRow(index, f"is not base64: {error}", "invalid_base64") from error
    if len(data) != 4 * width:
        numbers, rest = divmod(len(data), 4)
        found = f"{numbers} numbers" if not rest else f"{len(data)} bytes, no whole float32 numbers"
        raise WrongRow(index, f"has {found}; {what} has {width}", _WRONG_WIDTH)
    row_F: Float32Array = np.frombuffer(data, "<f4").astype(np.float32)
    return row_F


def look_like_tokens(rows: Sequence[Sequence[float]]) -> bool:
    """Whether all rows look like tokens, which OpenAI's API takes and some clients send by default."""
    return all(row and all(each >= 0 and each.is_integer() for each in row) for row in rows)


def checked(rows_BF: NDArray[np.floating]) -> Float32Array:
    """Return the rows as float32. Raises WrongRow for the first row without a usable direction."""
    squares_B = np.einsum("bf,bf->b", rows_BF, rows_BF)
    # float32 squares of a short row underflow, those of a long one overflow: check again below.
    if not (squares_B.min() >= _SHORTEST**2 and squares_B.max() <= _LONGEST**2):
        _refuse(rows_BF)
    return rows_BF.astype(np.float32, copy=False)


def has_direction(row_F: NDArray[np.floating]) -> bool:
    """Return whether a row is finite, and neither too short nor too long."""
    # In float64, where the squares of float32 neither underflow nor overflow.
    return bool(_SHORTEST <= np.linalg.norm(row_F.astype(np.float64)) <= _LONGEST)


def _refuse(rows_BF: NDArray[np.floating]) -> None:
    for index, row_F in enumerate(rows_BF.astype(np.float64)):
        length = float(np.hypot.reduce(row_F))  # neither underflows nor overflows
        if not _SHORTEST <= length <= _LONGEST:
            raise WrongRow(
                index,
                f"{_found(row_F, length)}; permitted are lengths from {_SHORTEST:g} to "
                f"{_LONGEST:g}, because only the direction matters",
            )


def _found(row_F: NDArray[np.float64], length: float) -> str:
    odd = np.flatnonzero(~np.isfinite(row_F))
    if len(odd):
        return f"has {row_F[odd[0]]} at position {odd[0]}"
    return f"is of length {length:.3g}" if length else "is all zeros"
