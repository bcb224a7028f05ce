"""What one kind of encoder has to be able to do, in its own process.

Shapes: B items, F width of the raw feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from workers.serve.versions.loading import Float32Array

ItemT = TypeVar("ItemT")


class FrozenEncoder(Protocol[ItemT]):
    """Built from an EncoderSpec. It is warm when it is built, and its width is the spec's.

    Building raises EncoderUnusable, where the model is not there or is another one.
    """

    def read(self, raw: str | bytes) -> ItemT:
        """One raw item, ready for a pass. Raises ValueError, whose words the client is told.

        Called in another thread than `features`: files are opened while others are encoded.
        """
        ...

    def features(self, items: Sequence[ItemT]) -> Float32Array:
        """Features (B × F) of items that were read; at least one, at most `max_batch`.

        A row must not depend on the others: items of several requests share a pass.
        """
        ...


class EncoderUnusable(Exception):
    """The encoder cannot start: a package, the model or the agreed width is missing."""


@dataclass(frozen=True)
class Unreadable:
    """UnreadableItem on its way between two processes, which exceptions do not survive whole."""

    index: int
    reason: str


Encoded = Float32Array | Unreadable
