"""The encoders as a replica of the endpoint reaches them: checks first, then a call to the encoder's process.

`api/limits.py` bounds how many items an owner may have here; owners take turns.

Shapes: B items, F width of the raw feature.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec, Media
from cmcl.fairness import FairSemaphore
from workers.encoders.parts import Part
from workers.encoders.port import EncoderMismatch
from workers.serve.encoders.port import (
    Encoded,
    EncodedParts,
    EncoderTimeout,
    EncoderUnavailable,
    Raw,
    Refusal,
    UnreadableItem,
    Wanted,
)
from workers.serve.telemetry import LogOnce
from workers.serve.versions.loading import Float32Array

logger = logging.getLogger(__name__)

# More than one pass, so that the next one is full when the present one ends; items beyond that wait in the
# replica that sent them.
PASSES_AHEAD = 4

# For each process: one that is being encoded and one that waits.
_PARTS_AT_ONCE = 2

_ARTICLES: Mapping[Media, str] = {
    "text": "a text",
    "image": "an image",
    "audio": "an audio file",
    "video": "a video file",
    "numbers": "a list of numbers",
}

# Encodes at most `max_batch` items in the encoder's process, if it has the expected identity. Without items it
# checks the identity alone. Raises EncoderUnavailable.
Call = Callable[[Sequence[Raw], EncoderIdentity | None], Awaitable[Encoded]]
# The same of one file, or of the windows that cover it, however many.
PartsCall = Callable[[bytes, EncoderIdentity | None, Wanted], Awaitable[EncodedParts]]
T = TypeVar("T")


class EncoderClient:
    """One configured encoder, in its own processes.

    `expected`: the identity whose features a version has learned; None: any is accepted. The process that encodes
    compares it, so a process that was replaced a moment ago is checked as well.
    """

    def __init__(self, spec: EncoderSpec, call: Call, call_parts: PartsCall) -> None:
        self.spec = spec
        self._call, self._call_parts = call, call_parts
        # The encoder's process does not distinguish owners, and answers in order of arrival.
        self._semaphore = FairSemaphore(PASSES_AHEAD * spec.max_batch * spec.replicas)
        self._log = LogOnce(logger, "%s refuses items: %s")

    async def encode(
        self, raw: Sequence[Raw], owner: str, expected: EncoderIdentity | None
    ) -> Float32Array:
        """Features (B × F) of one item or more; owners are served in turns.

        Raises UnreadableItem, EncoderMismatch, EncoderUnavailable.
        """
        for index, item in enumerate(raw):
            _check(index, item, self.spec)
        rows_BF = np.concatenate(await self._in_parts(raw, owner, expected))
        assert len(rows_BF) == len(raw), "not one feature for each item"
        return rows_BF

    async def encode_parts(
        self, file: bytes, owner: str, expected: EncoderIdentity | None, wanted: Wanted
    ) -> list[Part[Float32Array]]:
        """Return a file, or the windows that cover it, with features (F). Raises as `encode`."""
        has_windows = self.spec.takes in ("audio", "video") and self.spec.window_seconds
        if wanted.parts and not has_windows:
            raise UnreadableItem(
                0,
                f"encoder {self.spec.name!r} has no windows: parts need one of audio or video that sets window_seconds",
            )
        _check(0, file, self.spec)
        async with _in_time(self.spec), self._semaphore.held(owner, 1):
            return self._checked(await self._call_parts(file, expected, wanted), 0, expected)

    async def check(self, expected: EncoderIdentity | None) -> None:
        """Raises EncoderMismatch, EncoderUnavailable."""
        async with _in_time(self.spec):
            self._checked(await self._call((), expected), 0, expected)

    async def _in_parts(
        self, raw: Sequence[Raw], owner: str, expected: EncoderIdentity | None
    ) -> list[Float32Array]:
        """Encode in parts of one pass. Few at a time, so that smaller requests come between."""
        size = self.spec.max_batch
        turns = asyncio.Semaphore(_PARTS_AT_ONCE * self.spec.replicas)

        async def part(start: int) -> Float32Array:
            items = raw[start : start + size]
            async with turns, self._semaphore.held(owner, len(items)):
                encoded = await self._call(items, expected)
            return self._checked(encoded, start, expected)

        calls = [asyncio.ensure_future(part(start)) for start in range(0, len(raw), size)]
        try:
            async with _in_time(self.spec):
                return await asyncio.gather(*calls)
        finally:
            # Where one part failed, the others are not needed.
            for each in calls:
                each.cancel()

    def _checked(
        self, encoded: T | UnreadableItem | Refusal, start: int, expected: EncoderIdentity | None
    ) -> T:
        """Return what the process made of items from `start` on, or raise the error that it returned."""
        if isinstance(encoded, UnreadableItem):
            raise UnreadableItem(start + encoded.index, encoded.reason)
        if isinstance(encoded, EncoderUnavailable):
            raise encoded
        # Logged once for each identity: versions of several models share the encoder, and some may match.
        what = f"encoder {self.spec.name!r}" + (f" for {expected.digest[:12]}" if expected else "")
        if isinstance(encoded, EncoderMismatch):
            self._log.failed(what, encoded)
            raise encoded
        self._log.recovered(what)
        return encoded


@asynccontextmanager
async def _in_time(spec: EncoderSpec) -> AsyncIterator[None]:
    """Limit the wait for an encoder. Raises EncoderTimeout after `answer_seconds`."""
    try:
        async with asyncio.timeout(spec.answer_seconds):
            yield
    except TimeoutError as error:
        raise EncoderTimeout(spec.name, spec.answer_seconds) from error


def kind_of(raw: Raw) -> str:
    """Return the form in which a raw item was sent, for messages."""
    if isinstance(raw, str):
        return "a text"
    return "a file" if isinstance(raw, bytes) else "numbers"


def takes(spec: EncoderSpec) -> str:
    """Return what one item of this encoder is, for messages."""
    return _ARTICLES[spec.takes]


def is_taken(spec: EncoderSpec, raw: Raw) -> bool:
    """Return whether an item was sent in the form that the encoder takes."""
    if spec.takes == "text":
        return isinstance(raw, str)
    if spec.takes == "numbers":
        return not isinstance(raw, str | bytes)
    return isinstance(raw, bytes)


def _check(index: int, item: Raw, spec: EncoderSpec) -> None:
    """Check form and size of an item, before it is sent to the encoder. Raises UnreadableItem."""
    if not is_taken(spec, item):
        raise UnreadableItem(
            index, f"encoder {spec.name!r} takes {takes(spec)}, not {kind_of(item)}"
        )
    if not item:
        raise UnreadableItem(index, "it is empty")
    if isinstance(item, str | bytes) and (size := _bytes_of(index, item)) > spec.max_item_bytes:
        raise UnreadableItem(
            index, f"it has {size} bytes; permitted are 1 to {spec.max_item_bytes}"
        )


def _bytes_of(index: int, item: str | bytes) -> int:
    try:
        return len(item.encode() if isinstance(item, str) else item)
    except UnicodeEncodeError as error:
        raise UnreadableItem(index, "it has half of a surrogate pair") from error
