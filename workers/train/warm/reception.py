"""Where jobs come with their attempts, and hear what became of them. All in one event loop, no Ray.

A job on the resident's node comes to its Unix socket: the kernel closes it when the job dies, and
that is how it is known. Any other job asks through Ray, again and again; one that has not asked for
some time has died.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from workers.train.warm.desk import Answer, Attempt, Desk
from workers.train.warm.wire import (
    Request,
    Setup,
    answer_from_line,
    answer_to_line,
)

_LEAVING_SECONDS = 0.2
_LEAVING = "the ranks that stay are about to end, for an attempt that asked for others"

T = TypeVar("T")


@dataclass(frozen=True)
class Times:
    """Seconds.

    call     the longest that a call through Ray waits for news; whoever called calls again
    absence  who has not called again for so long has died; a job may write to the object store first
    look     between two looks whether nobody has come for long
    """

    call: float = 10.0
    absence: float = 30.0
    look: float = 1.0


class Reception:
    """The desk, and all who wait for news of it.

    `idle_seconds`: it closes after so long without an attempt, until a job says otherwise. `end` is
    called once it has closed and nobody is left.
    """

    def __init__(
        self,
        setup: Setup,
        idle_seconds: float,
        end: Callable[[], None],
        times: Times = Times(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.desk = Desk(clock)
        self._setup, self._idle_seconds, self._end = setup, idle_seconds, end
        self._times = times
        self._news = asyncio.Event()
        self._is_leaving = False
        # Of those who ask through Ray: when each is taken for dead.
        self._absences: dict[Attempt, asyncio.TimerHandle] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One job at the socket, from its request to its answer or its end."""
        gone = None
        try:
            request = Request.from_line(await reader.readline())
            gone = asyncio.ensure_future(reader.read())
            await self._answer(request, writer, gone)
        except (ValueError, TypeError, KeyError) as error:
            self._turn_away(error)
        except ConnectionError:
            pass  # The job has gone, which is known by now.
        finally:
            if gone is not None:
                gone.cancel()
            writer.close()

    async def ask(self, request_line: bytes, told_line: bytes) -> bytes:
        """Of a job elsewhere: its answer, once it is another than it was told; after a while, anyway."""
        try:
            request, told = Request.from_line(request_line), answer_from_line(told_line)
        except (ValueError, TypeError, KeyError) as error:
            return answer_to_line(Answer("elsewhere", self._turn_away(error)))
        attempt = request.attempt
        if attempt not in self._absences and (refusal := self._refusal(request)):
            return answer_to_line(refusal)
        self._attend(request)
        answer = await self.until(lambda: self._other_answer(attempt, told)) or told
        if answer.is_final:
            self._forget(attempt)
        return answer_to_line(answer)

    def leave(self, request_line: bytes) -> None:
        """Of a job elsewhere: it asks no more, whether it had its answer or not."""
        self._forget(Request.from_line(request_line).attempt)

    async def until(self, look: Callable[[], T | None]) -> T | None:
        """What `look` finds, as soon as it finds anything; None if that takes long."""
        deadline = time.monotonic() + self._times.call
        while not (found := look()):
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return None
        return found

    def tell(self) -> None:
        """Wake everybody who waits for news."""
        self._news.set()
        self._news = asyncio.Event()
        self._leave_if_idle()

    async def leave_when_idle(self) -> None:
        """What the ranks hold goes back to the cluster, whose autoscaler takes nodes away."""
        while not 0 < self._idle_seconds <= self.desk.idle_seconds:
            await asyncio.sleep(self._times.look)
        print(f"no attempt came for {self._idle_seconds:g} s: the ranks leave", flush=True)
        self._make_room()

    async def _answer(
        self, request: Request, writer: asyncio.StreamWriter, gone: "asyncio.Future[bytes]"
    ) -> None:
        if refusal := self._refusal(request):
            await _send(writer, refusal)
            return
        self._join(request)
        try:
            await self._follow(request.attempt, writer, gone)
        finally:
            self._leave(request.attempt)

    async def _follow(
        self, attempt: Attempt, writer: asyncio.StreamWriter, gone: "asyncio.Future[bytes]"
    ) -> None:
        """Tell every change until there is nothing more to tell, or nobody to tell it to."""
        told: Answer | None = None
        while not gone.done() and not (told and told.is_final):
            answer = self.desk.answer(attempt)
            if answer != told:
                await _send(writer, answer)
                told = answer
                continue
            news = asyncio.ensure_future(self._news.wait())
            either: list[asyncio.Future[Any]] = [news, gone]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()

    def _refusal(self, request: Request) -> Answer | None:
        """The word for an attempt that this group is not for; it makes room then."""
        differences = self._setup.differences(request.setup)
        if not self._is_leaving and not differences:
            return None
        self._make_room()
        return Answer("elsewhere", differences or _LEAVING)

    def _turn_away(self, error: Exception) -> str:
        words = f"a job of other code is not served: {error!r}"
        print(words, flush=True)
        self._make_room()
        return words

    def _attend(self, request: Request) -> None:
        """It has come, or is still there."""
        attempt = request.attempt
        if attempt in self._absences:
            self._absences[attempt].cancel()
        else:
            self._join(request)
        loop = asyncio.get_running_loop()
        patience = self._times.call + self._times.absence
        self._absences[attempt] = loop.call_later(patience, self._forget, attempt)

    def _forget(self, attempt: Attempt) -> None:
        """Once: its job may leave while a call of it still waits."""
        if absence := self._absences.pop(attempt, None):
            absence.cancel()
            self._leave(attempt)

    def _other_answer(self, attempt: Attempt, told: Answer) -> Answer | None:
        answer = self.desk.answer(attempt)
        return None if answer == told else answer

    def _join(self, request: Request) -> None:
        self._idle_seconds = request.idle_seconds
        self.desk.join(request.attempt, request.priority)
        self.tell()

    def _leave(self, attempt: Attempt) -> None:
        self.desk.leave(attempt)
        self.tell()

    def _make_room(self) -> None:
        """Another group is wanted: serve those who are in line, and end."""
        self._is_leaving = True
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self._is_leaving and self.desk.is_empty:
            # Later, so that the answers that are under way arrive.
            asyncio.get_running_loop().call_later(_LEAVING_SECONDS, self._close)

    def _close(self) -> None:
        """Who came before it was decided is served first."""
        if self.desk.is_empty:
            self._end()


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(answer_to_line(answer))
    await writer.drain()
