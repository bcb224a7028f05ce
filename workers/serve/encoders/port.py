"""Frozen encoders as ports: what the API needs, and what one kind of encoder has to implement.

Shapes: B items, F width of the raw feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from workers.serve.encoders.spec import RawKind
from workers.serve.versions.loading import Float32Array

ItemT = TypeVar("ItemT")


class EncoderUnavailable(Exception):
    """The encoder does not respond; trying again can help."""


class UnreadableItem(Exception):
    """An item that the encoder cannot read: not an image, an empty text, one that is too long."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"item {index}: {reason}")
        self.index = index
        self.reason = reason


@dataclass(frozen=True)
class EncoderInfo:
    """The encoder of one modality: it reads texts, or the bytes of files (images, ...)."""

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
    """No encoder is configured: clients send features."""

    @property
    def infos(self) -> Mapping[str, EncoderInfo]:
        return {}

    async def encode(self, modality: str, raw: Sequence[str | bytes], tenant: str) -> Float32Array:
        raise KeyError(modality)


class FrozenEncoder(Protocol[ItemT]):
    """Built from an EncoderSpec, warmed up, with the width of the spec.

    Building raises EncoderUnusable, where the model is missing or has another width.
    """

    def read(self, raw: str | bytes) -> ItemT:
        """Read one raw item for a pass. Raises ValueError, whose message the client gets.

        Called in another thread than `features`: files are opened while others are encoded.
        """
        ...

    def features(self, items: Sequence[ItemT]) -> Float32Array:
        """Return features (B × F) of items that were read; at least one, at most `max_batch`.

        A row must not depend on the others: items of several requests share a pass.
        """
        ...


class EncoderUnusable(Exception):
    """The encoder cannot start: a package, the model or the agreed width is missing."""


@dataclass(frozen=True)
class Unreadable:
    """UnreadableItem between two processes: exceptions are not pickled whole."""

    index: int
    reason: str


Encoded = Float32Array | Unreadable
