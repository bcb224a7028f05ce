"""Encoders of a replica, in its own process: a text's features are its letters, counted."""

from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from workers.encoders.parts import Part
from workers.encoders.port import EncoderMismatch
from workers.serve.encoders.client import EncoderClient
from workers.serve.encoders.port import Encoded, EncodedParts, EncoderUnavailable, Raw, Wanted
from workers.serve.versions.loading import Float32Array

LETTERS = EncoderSpec(name="letters", kind="synthetic", takes="text", width=4)
IDENTITY = EncoderIdentity(kind="synthetic", adapter=1, model=None, takes="text", width=4)


class LetterEncoders(dict[str, EncoderClient]):
    """The encoder `letters`, of width 4. An empty text cannot be read.

    `asked`: how many items each time. `during` is awaited while items are encoded.
    """

    def __init__(self, spec: EncoderSpec = LETTERS) -> None:
        super().__init__({spec.name: EncoderClient(spec, self._answer, self._answer_parts)})
        self.is_down = False
        self.asked: list[int] = []
        self.during: Callable[[], Awaitable[None]] | None = None

    async def _answer(self, raw: Sequence[Raw], expected: EncoderIdentity | None) -> Encoded:
        if raw:
            self.asked.append(len(raw))
            if self.during is not None:
                await self.during()
        if self.is_down:
            return EncoderUnavailable("it is down")
        if expected is not None and (difference := IDENTITY.difference(expected)):
            return EncoderMismatch(difference)
        return np.stack([_features(text) for text in raw]) if raw else np.empty((0, 4), np.float32)

    async def _answer_parts(
        self, file: bytes, expected: EncoderIdentity | None, wanted: Wanted
    ) -> EncodedParts:
        """Each byte is a second, and a part; 0 is silence, without features. A thumbnail is the byte, as a JPEG."""
        small = b"\xff\xd8\xff" if wanted.thumbnails else b""
        if not wanted.parts:
            encoded = await self._answer([file], expected)
            return (
                [Part(encoded[0], thumbnail=small + file[:1])]
                if isinstance(encoded, np.ndarray)
                else encoded
            )
        encoded = await self._answer([file[at : at + 1] for at in range(len(file))], expected)
        if not isinstance(encoded, np.ndarray):
            return encoded
        return [
            Part(row_F * bool(file[at]), at, at + 1.0, small and small + file[at : at + 1])
            for at, row_F in enumerate(encoded)
        ]


def _features(item: Raw) -> Float32Array:
    """Features of a text: its length and its letters a, e and i; of a file: its bytes; of numbers: two and their sum."""
    if isinstance(item, bytes):
        return np.array([len(item), *item.ljust(3, b"\0")[:3]], np.float32)
    if isinstance(item, str):
        return np.array([len(item), *(item.count(letter) for letter in "aei")], np.float32)
    return np.array([*item[:2], sum(item), 1], np.float32)
