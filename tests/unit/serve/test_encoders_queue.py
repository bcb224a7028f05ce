"""Items of several requests share passes, and an invalid item fails only its own request."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from tests.fakes.encoders import LengthEncoder
from workers.serve.encoders.port import Encoded, Unreadable
from workers.serve.encoders.queue import EncoderQueue
from workers.serve.encoders.spec import EncoderSpec

SPEC = EncoderSpec(modality="text", kind="synthetic", width=2, max_batch=4)


class Queue:
    """A queue whose passes are held up until `release`."""

    def __init__(self, spec: EncoderSpec = SPEC) -> None:
        self.encoder = LengthEncoder()
        self.encoder.go.clear()
        self.watched: list[int] = []
        self._queue = EncoderQueue(self.encoder, spec, lambda items, _: self.watched.append(items))

    def ask(self, *raw: str) -> "asyncio.Task[Encoded]":
        return asyncio.ensure_future(self._queue.encode(raw))

    def release(self) -> None:
        self.encoder.go.set()

    async def until_read(self) -> None:
        """Wait until all earlier requests wait for a pass: items are read one after another."""
        assert await self.ask("bad") == Unreadable(0, "it is bad")

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
        assert queue.watched == [1, 3]

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


def test_an_item_that_cannot_be_read_is_named() -> None:
    async def main() -> None:
        queue = Queue()
        assert await queue.ask("a", "bad", "bad") == Unreadable(1, "it is bad")
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
        abandoned, patient = queue.ask("b"), queue.ask("c")
        await queue.until_read()
        abandoned.cancel()
        queue.release()
        await asyncio.gather(first, patient)
        assert queue.encoder.passes == [["a"], ["c"]]

    run(main())


def test_a_pass_waits_for_more_items_if_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        company, waits = asyncio.Event(), []

        async def wait(seconds: float) -> None:
            waits.append(seconds)
            await company.wait()

        monkeypatch.setattr(asyncio, "sleep", wait)
        queue = Queue(SPEC.model_copy(update={"batch_wait_seconds": 0.2}))
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
