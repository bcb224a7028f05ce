"""The port of encoders at the endpoint.

Shapes: B items, F width of the raw feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec

# As in `workers/encoders`, which replicas do not import: it loads decoders.
Float32Array = NDArray[np.float32]
# One raw item: a text, the bytes of a file, or a short list of numbers.
Raw = str | bytes | Sequence[float]


class EncoderUnavailable(Exception):
    """The encoder does not respond. A retry can succeed."""


class EncoderTimeout(EncoderUnavailable):
    """The encoder did not finish in time: it is busy, or restarts. Fewer items at once can succeed."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(f"encoder {name!r} gave no result within {seconds:g} s")
        self.seconds = seconds


class EncoderMismatch(Exception):
    """The encoder is not the one whose features the version has learned. The message says what differs."""


class UnreadableItem(Exception):
    """An item that the encoder cannot read: no image, an empty text, a file that is too large."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"item {index}: {reason}")
        self.index = index
        self.reason = reason


class Encoders(Protocol):
    """The configured encoders.

    `expected`: the identity whose features a version has learned; None: any is accepted. The process that encodes
    compares it, so a process that was replaced a moment ago is checked as well.
    """

    @property
    def specs(self) -> Mapping[str, EncoderSpec]:
        """Empty where none is configured."""
        ...

    async def encode(
        self, name: str, raw: Sequence[Raw], owner: str, expected: EncoderIdentity | None
    ) -> Float32Array:
        """Features (B × F). `owner`: owners are served in turns.

        Raises KeyError, UnreadableItem, EncoderMismatch, EncoderUnavailable.
        """
        ...

    async def check(self, name: str, expected: EncoderIdentity | None) -> None:
        """Raises KeyError, EncoderMismatch, EncoderUnavailable."""
        ...


class NoEncoders:
    """No encoder is configured: clients send features."""

    @property
    def specs(self) -> Mapping[str, EncoderSpec]:
        return {}

    async def encode(
        self, name: str, raw: Sequence[Raw], owner: str, expected: EncoderIdentity | None
    ) -> Float32Array:
        raise KeyError(name)

    async def check(self, name: str, expected: EncoderIdentity | None) -> None:
        raise KeyError(name)


# Responses of an encoder's process. Errors are values, because pickling an exception loses fields.


@dataclass(frozen=True)
class Unreadable:
    """UnreadableItem."""

    index: int
    reason: str


@dataclass(frozen=True)
class Mismatch:
    """EncoderMismatch."""

    reason: str


@dataclass(frozen=True)
class Unavailable:
    """EncoderUnavailable: the store does not answer, or no decoder starts."""

    reason: str


Encoded = Float32Array | Unreadable | Mismatch | Unavailable
