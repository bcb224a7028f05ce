"""An encoder without a model: features from a hash, for tests.

Equal inputs have equal features, on every machine and in every release. Different inputs have independent
features: heads can memorise them, but learn nothing about unseen inputs.

Shapes: B items, F width of the raw feature.
"""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from workers.serve.encoders.spec import EncoderSpec
from workers.serve.versions.loading import Float32Array


class SyntheticEncoder:
    """Independent normal entries of mean 0 and variance 1."""

    def __init__(self, spec: EncoderSpec) -> None:
        self._width = spec.width

    def read(self, raw: str | bytes) -> bytes:
        """The item's digest: all that its features depend on."""
        return sha256(raw.encode() if isinstance(raw, str) else raw).digest()

    def features(self, items: Sequence[bytes]) -> Float32Array:
        """Features (B × F)."""
        return np.stack([self._row_F(digest) for digest in items])

    def _row_F(self, digest: bytes) -> Float32Array:
        # Of NumPy's generators only this one is guaranteed to keep its stream.
        draws = np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
        row_F: Float32Array = draws.standard_normal(self._width).astype(np.float32)
        return row_F
