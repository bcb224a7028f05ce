"""How jobs at the socket and jobs on other nodes come to the one line, and leave it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from workers.train.warm.desk import Answer, Attempt
from workers.train.warm.reception import Reception, Times
from workers.train.warm.wire import Request, Setup, answer_from_line, answer_to_line

SETUP = Setup("abc", 2, 1, 0.0)
FIRST, SECOND = (Request(Attempt("file:///store", f"job-{n}", 1), SETUP) for n in (1, 2))
WAITING, WORKING = Answer("waiting"), Answer("working")
SECONDS = 60.0
PATIENT = Times(call=SECONDS, absence=SECONDS, look=0.001)


class Scene:
    """A reception, and whether it has come to its end."""

    def __init__(self, times: Times) -> None:
        self.now = 0.0
        self.ended = asyncio.Event()
        self.reception = Reception(SETUP, 0.0, self.ended.set, times, lambda: self.now)
        self.reception.desk.group_started()

    async def ask(self, request: Request, told: Answer = WAITING) -> Answer:
        return answer_from_line(await self.reception.ask(request.to_line(), answer_to_line(told)))

    def finish(self, number: int) -> None:
        """What the ranks do with an assignment."""
        assert self.reception.desk.next(after=number - 1)
        self.reception.desk.finished(number)
        self.reception.tell()


def run(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(play(), SECONDS))


def test_job_elsewhere_hears_of_every_change_until_it_has_its_answer() -> None:
    async def play() -> None:
        scene = Scene(PATIENT)
        assert await scene.ask(FIRST) == WORKING
        second = asyncio.ensure_future(scene.ask(SECOND))
        first = asyncio.ensure_future(scene.ask(FIRST, told=WORKING))
        await asyncio.sleep(0)
        scene.finish(1)
        assert await first == Answer("done")
        assert await second == WORKING
        scene.finish(2)
        assert await scene.ask(SECOND, told=WORKING) == Answer("done")
        assert scene.reception.desk.is_empty

    run(play)


def test_job_elsewhere_that_asks_no_more_has_gone() -> None:
    async def play() -> None:
        scene = Scene(Times(call=0.01, absence=0.0))
        assert await scene.ask(FIRST) == WORKING
        while not scene.reception.desk.is_empty:
            await asyncio.sleep(0.001)

    run(play)


def test_job_elsewhere_that_says_so_has_gone_at_once() -> None:
    async def play() -> None:
        scene = Scene(PATIENT)
        await scene.ask(FIRST)
        waiting = asyncio.ensure_future(scene.ask(FIRST, told=WORKING))
        await asyncio.sleep(0)
        scene.reception.leave(FIRST.to_line())
        assert scene.reception.desk.is_empty
        assert (await waiting).is_final, "the call that it no longer waits for ends as well"
        assert scene.reception.desk.is_empty

    run(play)


def test_attempt_for_another_group_is_told_which_setting_differs_and_the_group_makes_room() -> None:
    async def play() -> None:
        scene = Scene(PATIENT)
        await scene.ask(FIRST)
        other = Request(SECOND.attempt, Setup("abc", 4, 1, 0.5))
        answer = await scene.ask(other)
        assert answer.state == "elsewhere"
        assert answer.words == (
            "CMCL_RANKS is 2 for the ranks that stay and 4 for this attempt; "
            "CMCL_GPUS_PER_RANK is 0.0 for the ranks that stay and 0.5 for this attempt"
        )
        assert "about to end" in (await scene.ask(SECOND)).words, "it takes nobody any more"
        assert not scene.ended.is_set(), "who came before is served first"
        scene.finish(1)
        assert await scene.ask(FIRST, told=WORKING) == Answer("done")
        await scene.ended.wait()

    run(play)


def test_job_of_other_code_is_turned_away_in_words() -> None:
    async def play() -> None:
        scene = Scene(PATIENT)
        told = answer_from_line(await scene.reception.ask(b"{}", answer_to_line(WAITING)))
        assert (told.state, "other code" in told.words) == ("elsewhere", True)
        await scene.ended.wait()

    run(play)


def test_group_leaves_once_no_attempt_has_come_for_as_long_as_the_last_one_said() -> None:
    async def play() -> None:
        scene = Scene(PATIENT)
        leaving = asyncio.ensure_future(scene.reception.leave_when_idle())
        await scene.ask(Request(FIRST.attempt, SETUP, idle_seconds=1800.0))
        scene.now = 5000.0
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not leaving.done(), "it works"
        scene.finish(1)
        assert await scene.ask(FIRST, told=WORKING) == Answer("done")
        scene.now += 1799.0
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not leaving.done(), "it is too early"
        scene.now += 1.0
        await scene.ended.wait()

    run(play)
