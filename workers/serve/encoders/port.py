"""What the HTTP side asks of encoders, as a port.

Shapes: B items, F width of the raw feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from workers.serve.encoders.spec import RawKind
from workers.serve.versions.loading import Float32Array


class EncoderUnavailable(Exception):
    """The encoder does not answer now; the same items may be encoded in a moment."""


class UnreadableItem(Exception):
    """An item that the encoder cannot read: no image, an empty text, one that is too long."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"item {index}: {reason}")
        self.index = index
        self.reason = reason


@dataclass(frozen=True)
class EncoderInfo:
    """What stands in front of one modality: it takes texts, or the bytes of files (images, ...)."""

    name: str
    raw: RawKind
    width: int


class Encoders(Protocol):
    """The encoders that are configured, by modality."""

    @property
    def infos(self) -> Mapping[str, EncoderInfo]:
        """Empty where none is configured."""
        ...

    async def encode(self, modality: str, raw: Sequence[str | bytes], tenant: str) -> Float32Array:
        """Features (B × F). `tenant`: tenants are served in turns.

        Raises KeyError, UnreadableItem, EncoderUnavailable.
        """
        ...


class NoEncoders:
    """Where none is configured: features are posted."""

    @property
    def infos(self) -> Mapping[str, EncoderInfo]:
        return {}

    async def encode(self, modality: str, raw: Sequence[str | bytes], tenant: str) -> Float32Array:
        raise KeyError(modality)


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
