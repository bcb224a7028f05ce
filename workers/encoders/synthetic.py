"""An encoder without a model: features from a hash, for tests.

Equal items have equal features, on every machine and in every release. Different items have independent
features: heads can memorise them, but learn nothing about unseen items.

Shapes: B items, F width of the raw feature.
"""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from PIL import Image

from cmcl.contract.encoder import EncoderIdentity
from workers.encoders.identity import identity_of
from workers.encoders.media import Audio, Decoded, Video
from workers.encoders.port import Float32Array, FrozenEncoder, as_features


class SyntheticEncoder(FrozenEncoder[bytes]):
    """Independent normal entries of mean 0 and variance 1."""

    def identity(self) -> EncoderIdentity:
        """Return the identity, which depends on the width alone."""
        return identity_of(self.spec, adapter=1, files=None, settings={}, packages=())

    def load(self, decoded: Decoded) -> bytes:
        """Return the digest of the item, from which its features are drawn."""
        return sha256(_content(decoded)).digest()

    def features(self, items: Sequence[bytes]) -> Float32Array:
        """Features (B × F)."""
        return as_features(self.spec, np.stack([self._row_F(digest) for digest in items]))

    def _row_F(self, digest: bytes) -> Float32Array:
        # The only generator of NumPy that is guaranteed to keep its stream.
        draws = np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
        row_F: Float32Array = draws.standard_normal(self.spec.width).astype(np.float32)
        return row_F


def _content(decoded: Decoded) -> bytes:
    """Return the bytes of the decoded item: two files with the same pixels are equal items."""
    if isinstance(decoded, str):
        return decoded.encode()
    if isinstance(decoded, Image.Image):
        return repr(decoded.size).encode() + decoded.tobytes()
    if isinstance(decoded, Audio):
        return repr(decoded.rate).encode() + decoded.samples_WN.astype("<f4").tobytes()
    if isinstance(decoded, Video):
        return repr(decoded.frames_WTYXC.shape).encode() + decoded.frames_WTYXC.tobytes()
    return np.array(decoded, "<f8").tobytes()
