"""Formats of bodies and responses with vectors: JSON, raw floats, Arrow.

Shapes: B rows, E width of the embeddings.
"""

import base64
from collections.abc import Callable, Mapping

import numpy as np
import orjson
import pyarrow
from starlette.requests import Request
from starlette.responses import Response

from workers.serve.api.wire.binary import from_arrow
from workers.serve.api.wire.requests import Encoding
from workers.serve.api.wire.rows import from_bytes
from workers.serve.batching.compute import Steps
from workers.serve.errors import UnsupportedMedia
from workers.serve.versions.loading import Float32Array

JSON = "application/json"
RAW = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"

_FLOAT_BYTES = 4
# Of a float32 as text, with its comma; most take 12 to 14.
_JSON_BYTES: Mapping[Encoding, int] = {"float": 16, "base64": 6}
# curl sends the second of these by default.
_MEANS_JSON = (JSON, "application/x-www-form-urlencoded", "text/plain", "")

# orjson holds the interpreter while it writes, and the event loop waits: 2.5 ms for so many numbers.
_NUMBERS_AT_ONCE = 1 << 15


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
    form: str, body: bytes, dtype: np.dtype, what: str, width: int, most: int
) -> Float32Array:
    """Return the rows of a RAW or ARROW body, at most so many. Raises InvalidRequest."""
    if form == ARROW:
        return from_arrow(body, what, width, most)
    return from_bytes(body, dtype, what, width, most)


def answer_bytes(request: Request, numbers: int, encoding: Encoding) -> int:
    """Estimate the bytes of a response of so many numbers and of the array that it is made of; or less."""
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
    encoded = _as_base64(embeddings_BE) if encoding == "base64" else embeddings_BE
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


def _as_base64(embeddings_BE: Float32Array) -> list[str]:
    little_endian_BE = embeddings_BE.astype("<f4", copy=False)
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in little_endian_BE]
