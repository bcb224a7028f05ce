"""What the process of an encoder runs: the queue in front of the encoder, and the check of its identity.

Items of several requests share a pass. A pass takes what arrived during the one before it: a single request does not
wait, and under load passes fill up. `serve.batch` forms its batches by the clock instead, busy encoder or not
(docs/log.md has both).

Shapes: B items, F width of the raw feature.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.errors import StorageUnavailable
from cmcl.storage.object_store import ObjectStore
from workers.encoders.identity import check_or_record
from workers.encoders.parts import Part
from workers.encoders.port import EncoderMismatch, FrozenEncoder, ItemT
from workers.serve.encoders.port import (
    Encoded,
    EncodedParts,
    EncoderUnavailable,
    Raw,
    Refusal,
    UnreadableItem,
)
from workers.serve.threads import SYSTEM, Threads
from workers.serve.versions.loading import Float32Array

logger = logging.getLogger(__name__)

T = TypeVar("T")
RawT = TypeVar("RawT", bound=Raw)
# Called after each pass with its items and seconds.
Watch = Callable[[float], None]

# Calls a function in the thread of the passes, while no pass runs.
BetweenPasses = Callable[[Callable[[], Any]], Coroutine[Any, Any, Any]]


@dataclass
class _Waiting(Generic[ItemT]):
    items: list[ItemT]
    answer: "asyncio.Future[Float32Array]"


class EncoderQueue(Generic[ItemT]):
    """One encoder, used from one event loop."""

    def __init__(
        self,
        encoder: FrozenEncoder[ItemT],
        read_item: Callable[[Raw], ItemT],
        spec: EncoderSpec,
        watch: Watch,
        threads: Threads = SYSTEM,
    ) -> None:
        """`read_item`: reads one item for a pass, in a thread. Raises ValueError."""
        self._encoder = encoder
        self._read_item = read_item
        self._max_batch = spec.max_batch
        self._reads_files = spec.takes in ("image", "audio", "video")
        self._wait_seconds = spec.batch_wait_seconds
        self._watch = watch
        self._waiting: deque[_Waiting[ItemT]] = deque()
        self._passes: asyncio.Task[None] | None = None
        # One thread each: more would only take turns, for passes and for opening files in Python.
        self._reader = threads.executor(1, "read")
        self._computer = threads.executor(1, "encode")
        self._clock = threads.seconds

    async def encode(self, raw: Sequence[Raw]) -> Encoded:
        """Return features (B × F), or which item is unreadable. Raises ValueError where B > `max_batch`."""
        if not 1 <= len(raw) <= self._max_batch:
            raise ValueError(f"{len(raw)} items at once; permitted are 1 to {self._max_batch}")
        try:
            items = await self._read(raw, self._read_item)
        except UnreadableItem as error:
            return error
        except StorageUnavailable as error:  # of the process that decodes files
            return EncoderUnavailable(str(error))
        return await self._in_a_pass(items)

    async def encode_parts(
        self, file: bytes, read: Callable[[bytes], list[Part[ItemT]]]
    ) -> EncodedParts:
        """Return the parts of a file with their features (F), or why it is unreadable."""
        try:
            (parts,) = await self._read([file], read)
        except UnreadableItem as error:
            return error
        except StorageUnavailable as error:
            return EncoderUnavailable(str(error))
        rows: list[Float32Array] = []
        # Pass by pass, so that items of other requests come between.
        for start in range(0, len(parts), self._max_batch):
            some = parts[start : start + self._max_batch]
            rows += [*await self._in_a_pass([part.of for part in some])]
        return [Part(row_F, *part[1:]) for row_F, part in zip(rows, parts, strict=True)]

    async def _in_a_pass(self, items: list[ItemT]) -> Float32Array:
        """Return features (B × F) of at most `max_batch` items."""
        assert 1 <= len(items) <= self._max_batch, "no pass would take it"
        loop = asyncio.get_running_loop()
        waiting = _Waiting(items, loop.create_future())
        self._waiting.append(waiting)
        if self._passes is None:
            self._passes = loop.create_task(self._run_passes())
        return await waiting.answer

    async def between_passes(self, function: Callable[[], T]) -> T:
        """Call a function that uses the encoder, in the thread of the passes."""
        return await asyncio.get_running_loop().run_in_executor(self._computer, function)

    async def _read(self, raw: Sequence[RawT], read: Callable[[RawT], T]) -> list[T]:
        """Read files one by one: those of other requests come between, and a cancelled request stops reading."""
        loop, items = asyncio.get_running_loop(), list[T]()
        # Texts and numbers take less than a change of threads.
        size = 1 if self._reads_files else len(raw)
        for start in range(0, len(raw), size):
            some = raw[start : start + size]
            items += await loop.run_in_executor(self._reader, _read_some, some, start, read)
        return items

    async def _run_passes(self) -> None:
        """Run until the queue is empty; the next request starts it again."""
        try:
            while self._waiting:
                await asyncio.sleep(self._wait_seconds)
                if batch := self._next_batch():
                    await self._answer(batch)
        except Exception as error:
            # A bug: none waits until its deadline.
            logger.exception("the queue of an encoder failed, and the requests in it")
            _fail(self._waiting, error)
            self._waiting.clear()
        finally:
            self._passes = None

    def _next_batch(self) -> list[_Waiting[ItemT]]:
        """Return whole requests in the order in which they were read, without cancelled ones."""
        batch: list[_Waiting[ItemT]] = []
        room = self._max_batch
        while self._waiting and len(self._waiting[0].items) <= room:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
                room -= len(waiting.items)
        assert room >= 0
        return batch

    async def _answer(self, batch: list[_Waiting[ItemT]]) -> None:
        items = [item for waiting in batch for item in waiting.items]
        started = self._clock()
        loop = asyncio.get_running_loop()
        try:
            rows_BF = await loop.run_in_executor(self._computer, self._encoder.features, items)
            assert len(rows_BF) == len(items), "not one feature for each item"
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - any error of a model goes to each caller
            # A panic of a library in Rust, such as tokenizers, is no Exception.
            told = error if isinstance(error, Exception) else RuntimeError(f"it failed: {error!r}")
            _fail(batch, told)
            return
        _share_out(batch, rows_BF)
        self._watch(self._clock() - started)


def _read_some(raw: Sequence[RawT], start: int, read: Callable[[RawT], T]) -> list[T]:
    """Read items, of which the first has the number `start`. Raises UnreadableItem."""
    items = []
    for index, each in enumerate(raw, start):
        try:
            items.append(read(each))
        except ValueError as error:
            raise UnreadableItem(index, str(error)) from error
    return items


def _fail(batch: Iterable[_Waiting[ItemT]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)


def _share_out(batch: list[_Waiting[ItemT]], rows_BF: Float32Array) -> None:
    first = 0
    for waiting in batch:
        end = first + len(waiting.items)
        if not waiting.answer.done():
            waiting.answer.set_result(rows_BF[first:end])
        first = end


class IdentityCheck:
    """Compares the identity that is expected with that of the encoder, and once the recorded probe features.

    Identities are compared with each call. The verdict on the record is kept: neither the encoder of a process
    nor a record ever changes.
    """

    def __init__(
        self, encoder: FrozenEncoder[Any], store: ObjectStore, between_passes: BetweenPasses
    ) -> None:
        self._encoder = encoder
        self._identity = encoder.identity()
        self._digest = self._identity.digest
        self._store = store
        self._between_passes = between_passes
        self._lock = asyncio.Lock()
        self._is_checked = False
        self._mismatch: EncoderMismatch | None = None

    def check_now(self) -> None:
        """Compare with the record before the first call, whose pass would take seconds. Blocks.

        While the store is down, the first call does it.
        """
        with suppress(StorageUnavailable):
            self._mismatch = self._verdict(lambda function: function())
            self._is_checked = True

    async def refusal(self, expected: EncoderIdentity | None) -> Refusal | None:
        """Return why the encoder must not be used for features of this identity; None where it may be."""
        if expected is None:
            return None
        if expected.digest != self._digest:
            return EncoderMismatch(self._identity.difference(expected) or "")
        async with self._lock:
            if not self._is_checked:
                try:
                    self._mismatch = await self._compare()
                except StorageUnavailable as error:
                    return EncoderUnavailable(
                        f"the record of its identity cannot be read now: {error}"
                    )
                self._is_checked = True
        assert self._is_checked
        return self._mismatch

    async def _compare(self) -> EncoderMismatch | None:
        """Compare with the record; where there is none, write it. Raises StorageUnavailable."""
        loop = asyncio.get_running_loop()

        def compute(function: Callable[[], Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(self._between_passes(function), loop).result()

        return await asyncio.to_thread(self._verdict, compute)

    def _verdict(self, compute: Callable[[Callable[[], Any]], Any]) -> EncoderMismatch | None:
        try:
            check_or_record(self._encoder, self._store, compute)
        except EncoderMismatch as error:
            return error
        return None
