"""How jobs on this node and on other nodes join the queue and leave it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from workers.train.pool.protocol import PoolSetup, Request, status_from_line, status_to_line
from workers.train.pool.queue import Attempt, AttemptStatus
from workers.train.pool.server import PoolServer, ServerTimeouts

SETUP = PoolSetup("abc", 2, 1, 0.0)
FIRST, SECOND = (Request(Attempt("file:///store", f"job-{n}", 1), SETUP) for n in (1, 2))
WAITING, WORKING = AttemptStatus("waiting"), AttemptStatus("working")
SECONDS = 60.0
LONG = ServerTimeouts(call=SECONDS, absence=SECONDS, check=0.001)


class Scene:
    """A server, and whether it has ended."""

    def __init__(self, times: ServerTimeouts) -> None:
        self.now = 0.0
        self.ended = asyncio.Event()
        self.server = PoolServer(SETUP, 0.0, self.ended.set, times, lambda: self.now)
        self.server.queue.group_started()

    async def ask(self, request: Request, last: AttemptStatus = WAITING) -> AttemptStatus:
        return status_from_line(await self.server.poll(request.to_line(), status_to_line(last)))

    def finish(self, number: int) -> None:
        """Complete an assignment, as the ranks do."""
        assert self.server.queue.next(after=number - 1)
        self.server.queue.attempt_done(number)
        self.server.notify()


def run(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(play(), SECONDS))


def test_a_remote_job_receives_every_change_until_its_result() -> None:
    async def play() -> None:
        scene = Scene(LONG)
        assert await scene.ask(FIRST) == WORKING
        second = asyncio.ensure_future(scene.ask(SECOND))
        first = asyncio.ensure_future(scene.ask(FIRST, last=WORKING))
        await asyncio.sleep(0)
        scene.finish(1)
        assert await first == AttemptStatus("done")
        assert await second == WORKING
        scene.finish(2)
        assert await scene.ask(SECOND, last=WORKING) == AttemptStatus("done")
        assert scene.server.queue.is_empty

    run(play)


def test_a_remote_job_that_stops_polling_is_gone() -> None:
    async def play() -> None:
        scene = Scene(ServerTimeouts(call=0.01, absence=0.0))
        assert await scene.ask(FIRST) == WORKING
        while not scene.server.queue.is_empty:
            await asyncio.sleep(0.001)

    run(play)


def test_job_elsewhere_that_says_so_has_gone_at_once() -> None:
    async def play() -> None:
        scene = Scene(LONG)
        await scene.ask(FIRST)
        waiting = asyncio.ensure_future(scene.ask(FIRST, last=WORKING))
        await asyncio.sleep(0)
        scene.server.disconnect(FIRST.to_line())
        assert scene.server.queue.is_empty
        assert (await waiting).is_final, "the call that it no longer waits for ends as well"
        assert scene.server.queue.is_empty

    run(play)


def test_an_attempt_for_another_group_reports_the_differing_setting_and_the_group_ends() -> None:
    async def play() -> None:
        scene = Scene(LONG)
        await scene.ask(FIRST)
        other = Request(SECOND.attempt, PoolSetup("abc", 4, 1, 0.5))
        answer = await scene.ask(other)
        assert answer.state == "rejected"
        assert answer.message == (
            "CMCL_RANKS is 2 in the pool and 4 for this attempt; "
            "CMCL_GPUS_PER_RANK is 0.0 in the pool and 0.5 for this attempt"
        )
        assert "about to end" in (await scene.ask(SECOND)).message, "it accepts no further attempt"
        assert not scene.ended.is_set(), "who came before is served first"
        scene.finish(1)
        assert await scene.ask(FIRST, last=WORKING) == AttemptStatus("done")
        await scene.ended.wait()

    run(play)


def test_a_job_of_other_code_is_rejected_with_a_message() -> None:
    async def play() -> None:
        scene = Scene(LONG)
        last = status_from_line(await scene.server.poll(b"{}", status_to_line(WAITING)))
        assert (last.state, "another release" in last.message) == ("rejected", True)
        await scene.ended.wait()

    run(play)


def test_group_leaves_once_no_attempt_has_come_for_as_long_as_the_last_one_said() -> None:
    async def play() -> None:
        scene = Scene(LONG)
        leaving = asyncio.ensure_future(scene.server.close_when_idle())
        await scene.ask(Request(FIRST.attempt, SETUP, idle_seconds=1800.0))
        scene.now = 5000.0
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not leaving.done(), "it works"
        scene.finish(1)
        assert await scene.ask(FIRST, last=WORKING) == AttemptStatus("done")
        scene.now += 1799.0
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not leaving.done(), "it is too early"
        scene.now += 1.0
        await scene.ended.wait()

    run(play)
