"""The process of an encoder: items of several requests share passes, and features of another identity are refused.

An invalid item fails only its own request, and a library that computes other features is refused as well.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmcl.contract.encoder import EncoderIdentity, EncoderRecord, EncoderSpec
from cmcl.storage import layout
from cmcl.storage.documents import parse_document
from cmcl.storage.local import LocalStore
from tests.fakes.encoders import LENGTHS, LengthEncoder
from tests.fakes.flaky_store import FlakyStore
from workers.encoders.parts import Part
from workers.encoders.port import EncoderMismatch
from workers.serve.encoders.port import Encoded, EncoderUnavailable, Raw, Refusal, UnreadableItem
from workers.serve.encoders.queue import EncoderQueue, IdentityCheck

IDENTITY = LengthEncoder().identity()
KEY = layout.encoder_record(IDENTITY.digest)


class Queue:
    """A queue whose passes are held up until `release`."""

    def __init__(self, spec: EncoderSpec = LENGTHS) -> None:
        self.encoder = LengthEncoder()
        self.encoder.go.clear()
        self.watched: list[float] = []
        self.queue = EncoderQueue(self.encoder, self.encoder.read, spec, self.watched.append)

    def ask(self, *raw: str) -> "asyncio.Task[Encoded]":
        return asyncio.ensure_future(self.queue.encode(raw))

    def release(self) -> None:
        self.encoder.go.set()

    async def until_read(self) -> None:
        """Wait until all earlier requests wait for a pass: requests are read one after another."""
        assert repr(await self.ask("bad")) == repr(UnreadableItem(0, "it is bad"))

    async def until_passes(self, count: int) -> None:
        while len(self.encoder.passes) < count:
            await asyncio.sleep(0.001)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def lengths(encoded: Encoded) -> list[int]:
    assert isinstance(encoded, np.ndarray)
    return [int(row[0]) for row in encoded]


def test_what_comes_during_a_pass_shares_the_next() -> None:
    async def main() -> None:
        queue = Queue()
        first = queue.ask("a")
        await queue.until_passes(1)
        others = [queue.ask("bb"), queue.ask("ccc", "dddd")]
        await queue.until_read()
        queue.release()
        assert [lengths(each) for each in await asyncio.gather(first, *others)] == [
            [1],
            [2],
            [3, 4],
        ]
        assert queue.encoder.passes == [["a"], ["bb", "ccc", "dddd"]]
        assert len(queue.watched) == 2

    run(main())


def test_a_pass_has_no_more_items_than_it_may() -> None:
    async def main() -> None:
        queue = Queue()
        first = queue.ask("a")
        await queue.until_passes(1)
        others = [queue.ask("b", "b", "b"), queue.ask("c", "c"), queue.ask("d")]
        await queue.until_read()
        queue.release()
        await asyncio.gather(first, *others)
        assert queue.encoder.passes == [["a"], ["b", "b", "b"], ["c", "c", "d"]]

    run(main())


FILES = LENGTHS.model_copy(update={"takes": "image"})


class Reading:
    """A queue of files, which are read one at a time, each after `step`. `read`: those that were begun."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self._begun, self._may_end = threading.Semaphore(0), threading.Semaphore(0)
        self._queue = EncoderQueue(LengthEncoder(), self._read, FILES, lambda *_: None)

    def ask(self, *raw: str) -> "asyncio.Task[Encoded]":
        return asyncio.ensure_future(self._queue.encode(raw))

    async def until_next(self) -> None:
        """Wait until the next item is being read."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=60)

    def step(self, items: int) -> None:
        """Let so many items be read."""
        self._may_end.release(items)

    def _read(self, raw: Raw) -> str:
        assert isinstance(raw, str)
        self.read.append(raw)
        self._begun.release()
        assert self._may_end.acquire(timeout=60)
        return raw


def test_an_item_of_another_request_is_read_before_the_rest_of_a_large_one() -> None:
    async def main() -> None:
        queue = Reading()
        large = queue.ask("a", "bb", "ccc")
        await queue.until_next()
        small = queue.ask("dddd")
        await asyncio.sleep(0)
        queue.step(4)
        assert [lengths(each) for each in await asyncio.gather(large, small)] == [[1, 2, 3], [4]]
        assert queue.read == ["a", "dddd", "bb", "ccc"]

    run(main())


def test_no_further_item_of_a_request_is_read_after_it_was_cancelled() -> None:
    async def main() -> None:
        queue = Reading()
        cancelled = queue.ask("a", "bb", "ccc")
        await queue.until_next()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        later = queue.ask("dddd")
        queue.step(4)
        assert lengths(await later) == [4]
        assert queue.read == ["a", "dddd"]

    run(main())


def test_an_item_that_cannot_be_read_is_named() -> None:
    async def main() -> None:
        queue = Queue()
        refusal = await queue.ask("a", "bad", "bad")
        assert repr(refusal) == repr(UnreadableItem(1, "it is bad"))
        assert queue.encoder.passes == []

    run(main())


def test_a_failed_pass_fails_all_its_items_and_no_others() -> None:
    async def main() -> None:
        queue = Queue()
        queue.release()
        with pytest.raises(RuntimeError, match="out of memory"):
            await queue.ask("bug")
        assert lengths(await queue.ask("fine")) == [4]

    run(main())


def test_nothing_is_encoded_for_a_request_that_was_abandoned() -> None:
    async def main() -> None:
        queue = Queue()
        first = queue.ask("a")
        await queue.until_passes(1)
        abandoned, waiting = queue.ask("b"), queue.ask("c")
        await queue.until_read()
        abandoned.cancel()
        queue.release()
        await asyncio.gather(first, waiting)
        assert queue.encoder.passes == [["a"], ["c"]]

    run(main())


def test_a_pass_waits_for_more_items_if_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        company, waits = asyncio.Event(), []

        async def wait(seconds: float) -> None:
            waits.append(seconds)
            await company.wait()

        monkeypatch.setattr(asyncio, "sleep", wait)
        queue = Queue(LENGTHS.model_copy(update={"batch_wait_seconds": 0.2}))
        queue.release()
        asked = [queue.ask("a"), queue.ask("b")]
        await queue.until_read()
        assert (waits, queue.encoder.passes) == ([0.2], [])
        company.set()
        await asyncio.gather(*asked)
        assert queue.encoder.passes == [["a", "b"]]

    run(main())


@pytest.mark.parametrize("items", [0, 5])
def test_a_request_that_fits_into_no_pass_is_refused(items: int) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="permitted are 1 to 4"):
            await Queue().ask(*("a" for _ in range(items)))

    run(main())


@pytest.fixture
def store(tmp_path: Path) -> FlakyStore:
    return FlakyStore(LocalStore(tmp_path))


class Process:
    """One process with an encoder. `probes`: how often the encoder was used for a check."""

    def __init__(self, store: FlakyStore, encoder: LengthEncoder) -> None:
        self.encoder = encoder
        self.probes = 0
        self._check = IdentityCheck(encoder, store, self._between_passes)

    async def _between_passes(self, function: Callable[[], Any]) -> Any:
        self.probes += 1
        return function()

    def check_now(self) -> None:
        self._check.check_now()

    def ask(self, *expected: EncoderIdentity | None) -> list[Refusal | None]:
        async def main() -> list[Refusal | None]:
            return await asyncio.gather(*map(self._check.refusal, expected))

        return asyncio.run(main())


def test_without_an_expected_identity_any_encoder_is_used(store: FlakyStore) -> None:
    process = Process(store, LengthEncoder())
    assert process.ask(None) == [None]
    assert (process.probes, list(store.keys("encoders/"))) == (0, [])


@pytest.mark.parametrize(
    ("field", "value"), [("model", "another"), ("files", "0" * 64), ("adapter", 2)]
)
def test_another_identity_is_refused_with_field_and_both_values(
    store: FlakyStore, field: str, value: object
) -> None:
    expected = IDENTITY.model_copy(update={field: value})
    (refusal,) = Process(store, LengthEncoder()).ask(expected)
    assert isinstance(refusal, EncoderMismatch)
    assert field in str(refusal)
    assert repr(getattr(IDENTITY, field)) in str(refusal)
    assert repr(value) in str(refusal)


def test_the_record_is_compared_once_for_many_requests(store: FlakyStore) -> None:
    process = Process(store, LengthEncoder())
    assert process.ask(*[IDENTITY] * 5) == [None] * 5
    passes = len(process.encoder.passes)
    assert process.ask(IDENTITY) == [None]
    assert len(process.encoder.passes) == passes


def test_a_process_that_compared_at_its_start_answers_the_first_request_at_once(
    store: FlakyStore,
) -> None:
    for encoder, is_refused in (
        (LengthEncoder(), False),
        (LengthEncoder(LENGTHS, wrong=0.1), True),
    ):
        process = Process(store, encoder)
        process.check_now()
        passes = len(encoder.passes)
        (refusal,) = process.ask(IDENTITY)
        assert isinstance(refusal, EncoderMismatch) is is_refused
        assert len(encoder.passes) == passes > 0


def test_a_process_that_starts_without_its_store_compares_at_the_first_request(
    store: FlakyStore,
) -> None:
    process = Process(store, LengthEncoder())
    store.broken = "encoders/"
    process.check_now()
    assert isinstance(process.ask(IDENTITY)[0], EncoderUnavailable)
    store.broken = None
    assert process.ask(IDENTITY) == [None]


def test_the_first_process_writes_the_record_and_the_others_compare(store: FlakyStore) -> None:
    assert Process(store, LengthEncoder()).ask(IDENTITY) == [None]
    written = store.read(KEY)
    assert parse_document(written, KEY, EncoderRecord).identity == IDENTITY
    assert Process(store, LengthEncoder()).ask(IDENTITY) == [None]
    assert store.read(KEY) == written


def test_an_encoder_that_computes_other_features_is_refused_also_after_a_restart(
    store: FlakyStore,
) -> None:
    """Equal files and settings, and a library that computes something else with them."""
    assert Process(store, LengthEncoder()).ask(IDENTITY) == [None]
    for _ in range(2):
        (refusal,) = Process(store, LengthEncoder(LENGTHS, wrong=0.1)).ask(IDENTITY)
        assert isinstance(refusal, EncoderMismatch)
        assert "probe item 0" in str(refusal)


def test_a_damaged_record_is_refused(store: FlakyStore) -> None:
    store.put(KEY, b"{}")
    (refusal,) = Process(store, LengthEncoder()).ask(IDENTITY)
    assert isinstance(refusal, EncoderMismatch)
    assert "damaged" in str(refusal)


def test_items_of_others_come_between_the_passes_of_a_long_recording() -> None:
    """An hour has hundreds of windows."""

    async def main() -> None:
        queue = Queue()
        windows = [Part(name, at, at + 1) for at, name in enumerate("a" * 10)]
        recording = asyncio.ensure_future(queue.queue.encode_parts(b"file", lambda _: windows))
        await queue.until_passes(1)
        other = queue.ask("bbb")
        await queue.until_read()
        queue.release()
        encoded = await recording
        assert queue.encoder.passes == [["a"] * 4, ["bbb"], ["a"] * 4, ["a"] * 2]
        assert isinstance(encoded, list)
        assert [part[1:] for part in encoded] == [part[1:] for part in windows]
        assert [part.of.tolist() for part in encoded] == [[1, 1]] * 10
        assert lengths(await other) == [3]

    run(main())
