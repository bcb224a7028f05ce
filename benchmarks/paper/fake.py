"""Stand-ins of the three encoders, for tests: fixed random projections of what the decoders give.

Widths and lengths are those of the encoders that they stand in for. Equal content has equal features, similar
content similar ones, so that heads can learn; the features mean nothing else.

Shapes: B items, D numbers of a descriptor, F width of the feature.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cmcl.contract.encoder import EncoderIdentity
from workers.encoders.identity import identity_of
from workers.encoders.media import Audio, Decoded, Video
from workers.encoders.port import Float32Array, FrozenEncoder, as_features

_SIDE = 8
_BANDS = 64
_WORDS = 64


class FakeEncoder(FrozenEncoder[Float32Array]):
    """`options`: `seed`, a text that the projection is drawn from, and `length`, that of each feature."""

    uses = frozenset({"options"})

    def identity(self) -> EncoderIdentity:
        """Return the identity, which depends on the options alone."""
        settings = {name: str(value) for name, value in self.spec.options.items()}
        return identity_of(self.spec, adapter=1, files=None, settings=settings, packages=())

    def load(self, decoded: Decoded) -> Float32Array:
        """Return a descriptor (D): coarse pixels, a spectrum, or words."""
        return _descriptor(decoded).astype(np.float32)

    def features(self, items: Sequence[Float32Array]) -> Float32Array:
        """Features (B × F) of the declared length."""
        rows_BD = np.stack(items)
        projected_BF = rows_BD @ self._projection_DF(rows_BD.shape[1])
        lengths_B1 = np.linalg.norm(projected_BF, axis=1, keepdims=True)
        scale = float(str(self.spec.options.get("length", 1.0)))
        return as_features(self.spec, scale * projected_BF / lengths_B1)

    def _projection_DF(self, width: int) -> Float32Array:
        digest = hashlib.sha256(str(self.spec.options.get("seed", "")).encode()).digest()
        draws = np.random.RandomState(np.frombuffer(digest, "<u4"))
        projection_DF: Float32Array = draws.standard_normal((width, self.spec.width)).astype(
            np.float32
        )
        return projection_DF


def _descriptor(decoded: Decoded) -> np.ndarray:
    """Numbers of about unit size, the last one 1: a feature is never zero."""
    if isinstance(decoded, str):
        parts = _words(decoded)
    elif isinstance(decoded, Image.Image):
        parts = _pixels(np.asarray(decoded))
    elif isinstance(decoded, Audio):
        parts = _spectrum(decoded.samples_WN)
    elif isinstance(decoded, Video):
        frames = decoded.frames_WTYXC.reshape(-1, *decoded.frames_WTYXC.shape[2:])
        parts = np.mean([_pixels(frame) for frame in frames], axis=0)
    else:
        parts = np.asarray(decoded, np.float64)
    return np.append(parts, 1.0)


def _words(text: str) -> np.ndarray:
    counts = np.zeros(_WORDS)
    for word in text.lower().split():
        counts[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % _WORDS] += 1.0
    return counts


def _pixels(picture: np.ndarray) -> np.ndarray:
    small = Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() / 127.5 - 1


def _spectrum(samples_WN: Float32Array) -> np.ndarray:
    power = np.abs(np.fft.rfft(samples_WN, axis=1)).mean(axis=0)
    bands = np.array([band.mean() for band in np.array_split(power, _BANDS)])
    return 8 * bands / max(float(bands.max()), 1e-12)
