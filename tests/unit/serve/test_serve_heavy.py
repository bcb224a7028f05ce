"""What takes long has a thread of its own, and whatever becomes of that, nobody waits for ever."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fakes.executor import ScarceThreads
from workers.serve.compute.heavy import HeavyThread

PATIENCE = 60.0


def test_work_that_gets_no_thread_fails_and_holds_up_nothing() -> None:
    threads, done = ScarceThreads(1), list[str]()
    heavy = HeavyThread(executor=threads)

    async def ask() -> None:
        threads.are_gone = True
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await heavy.run("a", lambda: done.append("refused"))
        threads.are_gone = False
        await heavy.run("a", lambda: done.append("later"))

    asyncio.run(asyncio.wait_for(ask(), PATIENCE))
    assert done == ["later"]
    assert heavy.busy_seconds == 0


def test_after_the_end_what_runs_is_answered_and_what_waits_fails() -> None:
    threads, release = ThreadPoolExecutor(1), threading.Event()
    heavy = HeavyThread(executor=threads)

    def held() -> str:
        assert release.wait(PATIENCE)
        return "done"

    async def ask() -> list[object]:
        asked = [asyncio.ensure_future(heavy.run("a", held)) for _ in range(3)]
        await asyncio.sleep(0)
        threads.shutdown(wait=False)
        release.set()
        return list(await asyncio.gather(*asked, return_exceptions=True))

    answered, *refused = asyncio.run(asyncio.wait_for(ask(), PATIENCE))
    assert answered == "done"
    assert [type(each) for each in refused] == [RuntimeError, RuntimeError]
