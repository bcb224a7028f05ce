"""Slow work has its own thread, and every wait for it is bounded."""

import asyncio
import base64
import contextlib
import gc
import json
import threading
import time
import weakref

import numpy as np
import pytest

from tests.fakes.executor import EndingThreads
from workers.serve.api.wire.requests import Encoding
from workers.serve.api.wire.vectors import json_embeddings
from workers.serve.background import BackgroundExecutor, Steps, run_to_end

TIMEOUT = 60.0


def test_after_the_end_what_runs_is_answered_and_what_waits_fails() -> None:
    heavy, release = BackgroundExecutor(), threading.Event()

    def held() -> str:
        assert release.wait(TIMEOUT)
        return "done"

    async def ask() -> list[object]:
        asked = [asyncio.ensure_future(heavy.run("a", held)) for _ in range(3)]
        await asyncio.sleep(0)
        heavy._executor.shutdown(wait=False)
        release.set()
        return list(await asyncio.gather(*asked, return_exceptions=True))

    answered, *refused = asyncio.run(asyncio.wait_for(ask(), TIMEOUT))
    assert answered == "done"
    assert [type(each) for each in refused] == [RuntimeError, RuntimeError]


def test_two_threads_work_at_the_same_time_and_the_oldest_work_counts() -> None:
    now, begun, both = [10.0], threading.Event(), threading.Barrier(2)
    heavy = BackgroundExecutor(EndingThreads(lambda: now[0]), 2)

    def first() -> float:
        begun.set()
        both.wait(TIMEOUT)
        busy = heavy.busy_seconds
        both.wait(TIMEOUT)
        return busy

    def second() -> None:
        now[0] = 15.0
        both.wait(TIMEOUT)
        both.wait(TIMEOUT)

    async def ask() -> float:
        asked = asyncio.ensure_future(heavy.run("a", first))
        assert await asyncio.to_thread(begun.wait, TIMEOUT)
        now[0] = 12.0
        await heavy.run("b", second)
        return await asked

    assert asyncio.run(asyncio.wait_for(ask(), TIMEOUT)) == 5.0
    assert heavy.busy_seconds == 0


def test_work_in_steps_lets_other_owners_in_between() -> None:
    """A search with a long filter delays another owner's search by one step only."""
    heavy, done = BackgroundExecutor(), list[str]()

    def steps(number: int) -> Steps[str]:
        for _ in range(number):
            time.sleep(0.03)
            yield
        return "found"

    async def search(owner: str, number: int) -> str:
        found = await heavy.run_steps(owner, steps(number))
        done.append(owner)
        return found

    async def ask() -> list[str]:
        greedy = [asyncio.ensure_future(search("greedy", 20)) for _ in range(3)]
        await asyncio.sleep(0.05)
        return [await search("modest", 2), *await asyncio.gather(*greedy)]

    assert asyncio.run(asyncio.wait_for(ask(), TIMEOUT)) == ["found"] * 4
    assert done[0] == "modest"
    assert run_to_end(steps(1)) == "found"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_an_answer_written_in_pieces_is_the_whole_answer(encoding: Encoding) -> None:
    rows_BE = np.random.default_rng(0).standard_normal((300, 700), dtype=np.float32)
    steps = json_embeddings("m@1", rows_BE, encoding, more={"a": 1})
    next(steps)
    answer = json.loads(run_to_end(steps))
    assert [each["index"] for each in answer["data"]] == list(range(300))
    found = [
        each["embedding"]
        if encoding == "float"
        else np.frombuffer(base64.b64decode(each["embedding"]), "<f4")
        for each in answer["data"]
    ]
    np.testing.assert_array_equal(np.array(found, np.float32), rows_BE)
    assert {"object", "data", "model", "usage", "more"} == set(answer)


def test_what_failed_work_held_is_freed_without_a_garbage_collection() -> None:
    """Bodies of 8 MB that were refused once stayed by the dozen."""

    class Body:
        """What a request has sent."""

    def refuse(body: Body) -> None:
        raise ValueError

    async def ask() -> Body | None:
        heavy, body = BackgroundExecutor(), Body()
        sent = weakref.ref(body)
        asked = heavy.run("a", refuse, body)
        del body
        with contextlib.suppress(ValueError):
            await asked
        del asked
        await asyncio.sleep(0)
        await heavy.run("a", list)
        return sent()

    gc.disable()
    try:
        assert asyncio.run(ask()) is None
    finally:
        gc.enable()
