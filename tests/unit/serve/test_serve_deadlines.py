"""A timer is set only for a call that waits, and then behaves like any other."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVarTuple

import pytest

from workers.serve.api.limits import in_time

SOON, LATE = 0.05, 60.0
Arguments = TypeVarTuple("Arguments")


class CountedLoop(asyncio.SelectorEventLoop):
    """A loop that counts the timers that are set."""

    timers = 0

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)


def run(make: Callable[[], Coroutine[Any, Any, object]]) -> int:
    """Run it, and return the number of timers."""
    with asyncio.Runner(loop_factory=CountedLoop) as runner:
        runner.run(make())
        loop = runner.get_loop()
        assert isinstance(loop, CountedLoop)
        return loop.timers


async def at_once() -> str:
    return "result"


async def after_waits() -> str:
    await asyncio.sleep(0)
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "result")
    return str(await future)


async def error_at_once() -> str:
    raise ZeroDivisionError


async def error_after_a_wait() -> str:
    await asyncio.sleep(0)
    raise ZeroDivisionError


@pytest.mark.parametrize(("step", "timers"), [(at_once, 0), (after_waits, 1)])
def test_only_what_waits_gets_a_timer(step: Callable[[], Awaitable[str]], timers: int) -> None:
    async def main() -> None:
        assert await in_time(step(), LATE) == "result"

    assert run(main) == timers


@pytest.mark.parametrize("step", [error_at_once, error_after_a_wait])
def test_an_error_is_raised(step: Callable[[], Awaitable[str]]) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await in_time(step(), LATE)

    run(main)


def test_what_waits_for_too_long_is_cancelled() -> None:
    was_cancelled = False

    async def waits() -> None:
        nonlocal was_cancelled
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            was_cancelled = True
            raise

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await in_time(waits(), SOON)

    run(main)
    assert was_cancelled


def test_a_cancelled_task_is_cancelled_and_not_late() -> None:
    async def main() -> None:
        task = asyncio.create_task(in_time(asyncio.Event().wait(), LATE))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_an_awaitable_that_is_no_coroutine_is_awaited() -> None:
    async def main() -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "result")
        assert await in_time(future, LATE) == "result"

    run(main)
