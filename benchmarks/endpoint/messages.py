"""HTTP messages of a closed-loop client: requests in the compared formats, and reading of responses.

Minimal HTTP/1.1, so that the client is not what is measured: a library's client costs more per request than the
server (httpx: 0.5 ms).

Shapes: B rows, F width of the raw feature, E width of the embeddings, R different requests.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_VERSION = re.compile(rb"\r\nx-model-version: *(\d+)", re.IGNORECASE)
_LAST = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)

Array = NDArray[np.float32]
# Encoding of rows in requests and responses. base64 is inside JSON too; binary is raw float32.
Form = Literal["json", "base64", "binary"]
FORMS: tuple[Form, ...] = ("json", "base64", "binary")

_RAW = "application/octet-stream"
_JSON = "application/json"
# A product of 256 rows sums in another order than one of a single row; float32 agrees to this.
CLOSE = 2e-5


class MalformedResponse(Exception):
    """The response is not valid, or uses features that this client does not support."""


@dataclass(frozen=True)
class Head:
    """Status line and headers of a response. `version` is 0 if none is named."""

    status: int
    version: int
    begin: int
    end: int
    is_last: bool


def request(address: str, path: str, body: bytes, content_type: str, accept: str = "*/*") -> bytes:
    """Return the whole request. `address` is `http://host:port`."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\nAccept: {accept}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def head_of(data: bytes | bytearray, filled: int) -> Head | None:
    """Parse the head of the response at the start of `data`, or return None if it is incomplete.

    Raises MalformedResponse without a content-length: no server measured here sends chunked responses.
    """
    end = data.find(_END, 0, filled)
    if end < 0:
        return None
    text = bytes(data[: end + 2])
    length = _LENGTH.search(text)
    if length is None or not text.startswith(b"HTTP/1."):
        raise MalformedResponse(f"a response that begins with {text[:60]!r} has no content-length")
    version = _VERSION.search(text)
    begin = end + len(_END)
    return Head(
        status=int(text[9:12]),
        version=int(version[1]) if version else 0,
        begin=begin,
        end=begin + int(length[1]),
        is_last=_LAST.search(text) is not None,
    )


def features(requests: int, rows: int, width: int, seed: int = 0) -> Array:
    """Return random features (R × B × F) like those of an encoder."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((requests, rows, width), dtype=np.float32)


def feature_request(
    address: str, form: Form, rows_BF: Array, *, model: str, modality: str
) -> bytes:
    """Return a request of `POST /v1/embeddings` with features."""
    if form == "binary":
        path = f"/v1/embeddings?model={model}&modality={modality}&dtype=float32"
        return request(address, path, rows_BF.astype("<f4").tobytes(), _RAW, accept=_RAW)
    if form == "json":
        body = {"model": model, "modality": modality, "input": rows_BF.tolist()}
    else:
        items = [{"modality": modality, "feature": _base64(row_F)} for row_F in rows_BF]
        body = {"model": model, "input": items, "encoding_format": "base64"}
    return request(address, "/v1/embeddings", json.dumps(body).encode(), _JSON)


def text_request(address: str, form: Form, texts: Sequence[str], model: str) -> bytes:
    """Return a request with texts in OpenAI's format."""
    encoding = "float" if form == "json" else "base64"
    body = {"model": model, "input": list(texts), "encoding_format": encoding}
    return request(address, "/v1/embeddings", json.dumps(body).encode(), _JSON)


def _base64(row_F: Array) -> str:
    return base64.b64encode(row_F.astype("<f4").tobytes()).decode()


def vectors(form: Form, body: bytes | memoryview, width: int) -> Array:
    """Return the embeddings (B × E) of a response body."""
    if form == "binary":
        return np.frombuffer(body, "<f4").reshape(-1, width)
    found: list[dict[str, Any]] = json.loads(bytes(body))["data"]
    if form == "json":
        return np.array([each["embedding"] for each in found], np.float32)
    rows = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in found]
    return np.array(rows, np.float32)


@dataclass(frozen=True)
class Expected:
    """Expected embeddings of each version and request: a picklable check for the client process.

    `by_version`: R × B × E of each version.
    """

    form: Form
    by_version: dict[int, Array]

    def __call__(self, body: memoryview, version: int, number: int) -> bool:
        """Return whether the response matches the version that it names."""
        expected_RBE = self.by_version.get(version)
        if expected_RBE is None:
            return False
        try:
            found_BE = vectors(self.form, body, expected_RBE.shape[2])
        except (ValueError, KeyError):
            return False
        return bool(
            found_BE.shape == expected_RBE[number].shape
            and np.abs(found_BE - expected_RBE[number]).max() < CLOSE
        )
