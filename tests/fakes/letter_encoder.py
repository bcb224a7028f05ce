"""Encoders of a replica, in its own process: a text's features are its letters, counted."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from workers.serve.encoders.port import EncoderInfo, EncoderUnavailable, UnreadableItem
from workers.serve.versions.loading import Float32Array


class LetterEncoders:
    """For the modality `text`, of width 4. An empty text cannot be read.

    `asked`: how many items each time. `meanwhile` is waited for while items are encoded.
    """

    def __init__(self) -> None:
        self.is_down = False
        self.asked: list[int] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    @property
    def infos(self) -> Mapping[str, EncoderInfo]:
        return {"text": EncoderInfo("letters", "text", 4)}

    async def encode(self, modality: str, raw: Sequence[str | bytes], tenant: str) -> Float32Array:
        self.asked.append(len(raw))
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.is_down:
            raise EncoderUnavailable("it is down")
        return np.stack([_features(index, text) for index, text in enumerate(raw)])


def _features(index: int, text: str | bytes) -> Float32Array:
    if not text or isinstance(text, bytes):
        raise UnreadableItem(index, "it is no text")
    return np.array([len(text), *(text.count(letter) for letter in "aei")], np.float32)
