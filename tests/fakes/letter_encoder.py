"""Encoders of a replica, in its own process: a text's features are its letters, counted."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from workers.serve.encoders.port import EncoderMismatch, EncoderUnavailable, Raw, UnreadableItem
from workers.serve.versions.loading import Float32Array

LETTERS = EncoderSpec(name="letters", kind="synthetic", takes="text", width=4)
IDENTITY = EncoderIdentity(kind="synthetic", adapter=1, model=None, takes="text", width=4)


class LetterEncoders:
    """The encoder `letters`, of width 4. An empty text cannot be read.

    `asked`: how many items each time. `during` is awaited while items are encoded.
    """

    def __init__(self, spec: EncoderSpec = LETTERS) -> None:
        self.is_down = False
        self.asked: list[int] = []
        self.during: Callable[[], Awaitable[None]] | None = None
        self._spec = spec

    @property
    def specs(self) -> Mapping[str, EncoderSpec]:
        return {self._spec.name: self._spec}

    async def encode(
        self, name: str, raw: Sequence[Raw], owner: str, expected: EncoderIdentity | None
    ) -> Float32Array:
        self.asked.append(len(raw))
        if self.during is not None:
            await self.during()
        await self._compare(expected)
        return np.stack([_features(index, text) for index, text in enumerate(raw)])

    async def check(self, name: str, expected: EncoderIdentity | None) -> None:
        await self._compare(expected)

    async def _compare(self, expected: EncoderIdentity | None) -> None:
        if self.is_down:
            raise EncoderUnavailable("it is down")
        if expected is not None and (difference := IDENTITY.difference(expected)):
            raise EncoderMismatch(difference)


def _features(index: int, item: Raw) -> Float32Array:
    """Features of a text: its length and its letters a, e and i; of a file: its bytes; of numbers: two and their sum."""
    if not item:
        raise UnreadableItem(index, "it is no text")
    if isinstance(item, bytes):
        return np.array([len(item), *item[:3]], np.float32)
    if isinstance(item, str):
        return np.array([len(item), *(item.count(letter) for letter in "aei")], np.float32)
    return np.array([*item[:2], sum(item), 1], np.float32)
