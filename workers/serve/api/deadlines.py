"""Deadlines of a request: of one wait, and of the whole request. Every request passes here several times.

A timer costs as much as all else that a small request does between two waits, and few requests wait for long
enough to need one.
"""

import asyncio
from collections.abc import Awaitable, Generator
from types import TracebackType
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from workers.serve.errors import DeadlineExceeded

T = TypeVar("T")
# Almost all requests are answered before; the others get a timer, and a task that listens to their socket.
_BEFORE_WATCHING_SECONDS = 0.05


async def in_time(awaitable: Awaitable[T], seconds: float) -> T:
    """Await for at most so many seconds. The timer is set only if the awaitable does not complete at once.

    Raises TimeoutError.
    """
    steps = awaitable.__await__()
    try:
        waits_for = next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    async with asyncio.timeout(seconds):
        return await _Started(steps, waits_for)


class _Started(Awaitable[T]):
    """What was awaited until its first wait, to be awaited for the rest."""

    def __init__(self, steps: Generator[Any, Any, T], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    value = yield waits_for
                except BaseException as error:  # noqa: BLE001 - passed on, as `await` does
                    waits_for = self._steps.throw(error)
                else:
                    waits_for = self._steps.send(value)
            except StopIteration as done:
                result: T = done.value
                return result


class CancelOnDisconnect:
    """Listens to the client of a request that takes long, and cancels the request when it disconnects or at its deadline.

    `deadline`: by the event loop's clock; `seconds`: how long that was from the headers, for the message. A class and
    not a generator, because every request passes here.
    """

    def __init__(self, request: Request, deadline: float, seconds: float) -> None:
        self._request = request
        self._deadline = deadline
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._listening: asyncio.Task[None] | None = None
        self._client_is_gone = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request must be answered inside a task")
        self._task = task
        loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        if self._deadline < loop.time() + _BEFORE_WATCHING_SECONDS:
            self._timeout.reschedule(self._deadline)
        self._later = loop.call_later(_BEFORE_WATCHING_SECONDS, self._watch)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._later.cancel()
        if self._listening is not None:
            self._listening.cancel()
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as late:
            raise DeadlineExceeded(
                f"the request was not done within its deadline of {self._seconds:g} s"
            ) from late
        is_ours = kind is asyncio.CancelledError and self._client_is_gone
        if is_ours and not self._task.uncancel():
            raise ClientDisconnect from None

    def _watch(self) -> None:
        if not self._timeout.expired():
            self._timeout.reschedule(self._deadline)
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._client_is_gone = True
        self._task.cancel()
