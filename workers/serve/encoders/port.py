"""What the HTTP side asks of encoders, as a port.

Shapes: B items, F width of the raw feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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
