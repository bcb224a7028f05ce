"""What an encoder's process answers: features, or one of these errors.

The process returns errors as values, and the replica raises them. Pickling keeps `args` alone of an exception.

Shapes: B items, F width of the raw feature.
"""

from collections.abc import Sequence
from typing import NamedTuple

from workers.encoders.parts import Part
from workers.encoders.port import EncoderMismatch, Float32Array

# One raw item: a text, the bytes of a file, or a short list of numbers.
Raw = str | bytes | Sequence[float]
# A picture of 96 x 96 pixels of noise has less.
MOST_THUMBNAIL_BYTES = 16 << 10


class EncoderUnavailable(Exception):
    """The encoder does not respond, the store with its record does not, or no decoder starts. A retry can succeed."""


class EncoderTimeout(EncoderUnavailable):
    """The encoder did not finish in time: it is busy, or restarts. Fewer items at once can succeed."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(f"encoder {name!r} gave no result within {seconds:g} s")
        self.seconds = seconds


class UnreadableItem(Exception):
    """An item that the encoder cannot read: no image, an empty text, a file that is too large."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)
        self.index = index
        self.reason = reason

    def __str__(self) -> str:
        return f"item {self.index}: {self.reason}"


class Wanted(NamedTuple):
    """What a file becomes, besides its feature: the windows that cover it, and a thumbnail of each."""

    parts: bool
    thumbnails: bool


Refusal = EncoderMismatch | EncoderUnavailable
Encoded = Float32Array | UnreadableItem | Refusal
EncodedParts = list[Part[Float32Array]] | UnreadableItem | Refusal
