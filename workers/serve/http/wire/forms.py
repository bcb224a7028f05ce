"""In which form a body came, and in which one the answer is wanted.

Shapes: B rows, E width of the embeddings.
"""

from collections.abc import Callable, Mapping

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from workers.serve.errors import UnsupportedMedia
from workers.serve.http.wire.answers import ARROW, JSON, RAW, arrow_embeddings, raw_embeddings
from workers.serve.http.wire.binary import from_arrow
from workers.serve.http.wire.requests import Encoding
from workers.serve.http.wire.rows import from_bytes
from workers.serve.versions.loading import Float32Array

_FLOAT_BYTES = 4
# Of a float32 as text, with its comma; most take 12 to 14.
_JSON_BYTES: Mapping[Encoding, int] = {"float": 16, "base64": 6}
# curl says the second of these where nobody says anything; it was JSON so far.
_MEANS_JSON = (JSON, "application/x-www-form-urlencoded", "text/plain", "")


def form_of(request: Request) -> str:
    """JSON, RAW or ARROW, by the header Content-Type. Raises UnsupportedMedia."""
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
    """The rows of a body in the form RAW or ARROW, at most so many. Raises InvalidRequest."""
    if form == ARROW:
        return from_arrow(body, what, width, most)
    return from_bytes(body, dtype, what, width, most)


def answer_bytes(request: Request, numbers: int, encoding: Encoding) -> int:
    """What an answer of so many numbers takes until it is sent, with the array that it is made of; or less."""
    if request.headers.get("accept", JSON) in (RAW, ARROW):
        return 2 * _FLOAT_BYTES * numbers
    return (_FLOAT_BYTES + _JSON_BYTES[encoding]) * numbers


def vectors_in_the_form_asked_for(
    request: Request,
    vectors_BE: Float32Array,
    headers: Mapping[str, str],
    as_json: Callable[[], bytes],
) -> Response:
    """By the header Accept; JSON unless it names one of the others alone."""
    told = {
        **headers,
        "x-rows": str(len(vectors_BE)),
        "x-width": str(vectors_BE.shape[1]),
    }
    accepted = request.headers.get("accept", JSON)
    if accepted == RAW:
        return Response(raw_embeddings(vectors_BE), media_type=RAW, headers=told)
    if accepted == ARROW:
        return Response(arrow_embeddings(vectors_BE), media_type=ARROW, headers=told)
    return Response(as_json(), media_type=JSON, headers=told)
