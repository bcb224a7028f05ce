"""The encoders as a replica of the endpoint reaches them: checks first, then a call to the encoder's process.

`api/admission.py` bounds how many items a tenant may have here; tenants take turns.

Shapes: B items, F width of the raw feature.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from workers.serve.encoders.port import (
    Encoded,
    EncoderInfo,
    EncoderUnavailable,
    Unreadable,
    UnreadableItem,
)
from workers.serve.encoders.spec import PASSES_AHEAD, EncoderSpec
from workers.serve.fair_queue import FairSemaphore
from workers.serve.versions.loading import Float32Array

# For each process: one that is being encoded and one that waits.
_PARTS_AT_ONCE = 2

# Encodes at most `max_batch` items in the encoder's process. Raises EncoderUnavailable.
Ask = Callable[[Sequence[str | bytes]], Awaitable[Encoded]]


class EncoderClients:
    """`Encoders` in their own processes."""

    def __init__(self, specs: Sequence[EncoderSpec], asks: Mapping[str, Ask]) -> None:
        """`asks`: the call to each modality's encoder."""
        self._clients = {spec.modality: _Client(spec, asks[spec.modality]) for spec in specs}

    @property
    def infos(self) -> Mapping[str, EncoderInfo]:
        """By modality."""
        return {modality: client.info for modality, client in self._clients.items()}

    async def encode(self, modality: str, raw: Sequence[str | bytes], tenant: str) -> Float32Array:
        """Features (B × F). Raises KeyError, UnreadableItem, EncoderUnavailable."""
        return await self._clients[modality].encode(raw, tenant)


class _Client:
    """One encoder."""

    def __init__(self, spec: EncoderSpec, ask: Ask) -> None:
        self.info = EncoderInfo(name=spec.name, raw=spec.raw, width=spec.width)
        self._spec = spec
        self._ask = ask
        # The encoder's process does not distinguish tenants, and answers in order of arrival.
        self._semaphore = FairSemaphore(PASSES_AHEAD * spec.max_batch * spec.replicas)

    async def encode(self, raw: Sequence[str | bytes], tenant: str) -> Float32Array:
        for index, item in enumerate(raw):
            _check(index, item, self._spec)
        parts = await self._in_parts(raw, tenant)
        return np.concatenate([np.empty((0, self._spec.width), np.float32), *parts])

    async def _in_parts(self, raw: Sequence[str | bytes], tenant: str) -> list[Float32Array]:
        """Encode in parts of one pass. Few at a time, so that smaller requests come between."""
        size = self._spec.max_batch
        turns = asyncio.Semaphore(_PARTS_AT_ONCE * self._spec.replicas)
        asked = [
            asyncio.ensure_future(self._part(tenant, start, raw[start : start + size], turns))
            for start in range(0, len(raw), size)
        ]
        try:
            async with asyncio.timeout(self._spec.answer_seconds):
                return await asyncio.gather(*asked)
        except TimeoutError as error:
            raise EncoderUnavailable(
                f"the encoder of {self._spec.modality!r} did not answer in "
                f"{self._spec.answer_seconds:g} s"
            ) from error
        finally:
            # Where one part failed, the others are not needed.
            for part in asked:
                part.cancel()

    async def _part(
        self, tenant: str, start: int, raw: Sequence[str | bytes], turns: asyncio.Semaphore
    ) -> Float32Array:
        async with turns, self._semaphore.held(tenant, len(raw)):
            encoded = await self._ask(raw)
        if isinstance(encoded, Unreadable):
            raise UnreadableItem(start + encoded.index, encoded.reason)
        return encoded


def _check(index: int, item: str | bytes, spec: EncoderSpec) -> None:
    """Check what can be checked without the encoder. Raises UnreadableItem."""
    kinds = {"text": str, "bytes": bytes}
    if not isinstance(item, kinds[spec.raw]):
        raise UnreadableItem(index, f"the encoder of {spec.modality!r} takes {spec.raw}")
    size = _bytes_of(index, item)
    if size == 0:
        raise UnreadableItem(index, "it is empty")
    if size > spec.max_item_bytes:
        raise UnreadableItem(
            index, f"it has {size} bytes; permitted are 1 to {spec.max_item_bytes}"
        )


def _bytes_of(index: int, item: str | bytes) -> int:
    try:
        return len(item.encode() if isinstance(item, str) else item)
    except UnicodeEncodeError as error:
        raise UnreadableItem(index, "it has half of a surrogate pair") from error
