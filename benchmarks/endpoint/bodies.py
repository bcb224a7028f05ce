"""Request bodies in the compared formats, and decoding of response bodies.

Shapes: B rows, F width of the raw feature, E width of the embeddings, R different requests.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.endpoint.http1 import request

Array = NDArray[np.float32]
# Encoding of rows in requests and responses. base64 is inside JSON too; binary is raw float32.
Form = Literal["json", "base64", "binary"]
FORMS: tuple[Form, ...] = ("json", "base64", "binary")

_RAW = "application/octet-stream"
_JSON = "application/json"
# A product of 256 rows sums in another order than one of a single row; float32 agrees to this.
CLOSE = 2e-5


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
