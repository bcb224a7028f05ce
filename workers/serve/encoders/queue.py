"""The queue in front of an encoder: items of several requests share a pass.

A pass takes what arrived during the one before it: a single request does not wait, and under load passes fill
up. `serve.batch` forms its batches by the clock instead, busy encoder or not (docs/log.md has both).

Shapes: B items, F width of the raw feature.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Generic, Protocol

from workers.serve.encoders.port import (
    Encoded,
    EncoderUnusable,
    FrozenEncoder,
    ItemT,
    Unreadable,
    UnreadableItem,
)
from workers.serve.encoders.spec import EncoderSpec
from workers.serve.encoders.synthetic import SyntheticEncoder
from workers.serve.versions.loading import Float32Array

# Called after each pass with its items and seconds.
Watch = Callable[[int, float], None]


class BatchingEncoder(Protocol):
    """An encoder behind its queue, for items of any type."""

    async def encode(self, raw: Sequence[str | bytes]) -> Encoded:
        """Return features (B × F), or which item is unreadable. Raises ValueError where B > `max_batch`."""
        ...


@dataclass
class _Waiting(Generic[ItemT]):
    items: list[ItemT]
    answer: "asyncio.Future[Float32Array]"


class EncoderQueue(Generic[ItemT]):
    """One encoder, used from one event loop."""

    def __init__(self, encoder: FrozenEncoder[ItemT], spec: EncoderSpec, watch: Watch) -> None:
        self._encoder = encoder
        self._max_batch = spec.max_batch
        self._wait_seconds = spec.batch_wait_seconds
        self._watch = watch
        self._waiting: deque[_Waiting[ItemT]] = deque()
        self._passes: asyncio.Task[None] | None = None
        # One thread each: more would only take turns, for passes and for opening files in Python.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read")
        self._computer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    async def encode(self, raw: Sequence[str | bytes]) -> Encoded:
        """Return features (B × F), or which item is unreadable. Raises ValueError where B > `max_batch`."""
        if not 1 <= len(raw) <= self._max_batch:
            raise ValueError(f"{len(raw)} items at once; permitted are 1 to {self._max_batch}")
        loop = asyncio.get_running_loop()
        try:
            items = await loop.run_in_executor(self._reader, self._read, raw)
        except UnreadableItem as error:
            return Unreadable(error.index, error.reason)
        waiting = _Waiting(items, loop.create_future())
        self._waiting.append(waiting)
        if self._passes is None:
            self._passes = loop.create_task(self._run_passes())
        return await waiting.answer

    def _read(self, raw: Sequence[str | bytes]) -> list[ItemT]:
        items = []
        for index, each in enumerate(raw):
            try:
                items.append(self._encoder.read(each))
            except ValueError as error:
                raise UnreadableItem(index, str(error)) from error
        return items

    async def _run_passes(self) -> None:
        """Run until the queue is empty; the next request starts it again."""
        try:
            while self._waiting:
                await asyncio.sleep(self._wait_seconds)
                if batch := self._next_batch():
                    await self._answer(batch)
        finally:
            self._passes = None

    def _next_batch(self) -> list[_Waiting[ItemT]]:
        """Return whole requests in order of arrival, without cancelled ones."""
        batch: list[_Waiting[ItemT]] = []
        room = self._max_batch
        while self._waiting and len(self._waiting[0].items) <= room:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
                room -= len(waiting.items)
        return batch

    async def _answer(self, batch: list[_Waiting[ItemT]]) -> None:
        items = [item for waiting in batch for item in waiting.items]
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            rows_BF = await loop.run_in_executor(self._computer, self._encoder.features, items)
        except Exception as error:  # noqa: BLE001 - any error of a model goes to each caller
            _fail(batch, error)
            return
        _share_out(batch, rows_BF)
        self._watch(len(items), time.perf_counter() - started)


def _share_out(batch: list[_Waiting[ItemT]], rows_BF: Float32Array) -> None:
    first = 0
    for waiting in batch:
        end = first + len(waiting.items)
        if not waiting.answer.done():
            waiting.answer.set_result(rows_BF[first:end])
        first = end


def _fail(batch: list[_Waiting[ItemT]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)


def open_encoder(spec: EncoderSpec, watch: Watch) -> BatchingEncoder:
    """Open the encoder of this spec behind its queue, warmed up. Raises EncoderUnusable."""
    if spec.kind == "synthetic":
        return EncoderQueue(SyntheticEncoder(spec), spec, watch)
    if find_spec("sentence_transformers") is None:
        raise EncoderUnusable(
            f"the encoder of {spec.modality!r} is of kind sentence-transformers, and "
            "sentence-transformers is not installed on this node. The worker image has it, and so has "
            "a checkout after `make setup`; in an environment of your own: pip install "
            "sentence-transformers pillow"
        )
    # Imported here, because it takes seconds and only the process of the encoder needs it.
    from workers.serve.encoders.sentence_transformers import SentenceTransformersEncoder

    return EncoderQueue(SentenceTransformersEncoder(spec), spec, watch)
