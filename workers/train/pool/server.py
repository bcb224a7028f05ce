"""How jobs join the queue and wait for the status of their attempts. One event loop, no Ray.

A job on the actor's node connects to its Unix socket, which the kernel closes when the job dies. Other
jobs poll through Ray; one that has not polled for some time counts as dead.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from workers.train.pool.protocol import PoolSetup, Request, status_from_line, status_to_line
from workers.train.pool.queue import Attempt, AttemptStatus, JobQueue

_CLOSING_SECONDS = 0.2
_CLOSING = "the pool is about to end, for an attempt that asked for another setup"

T = TypeVar("T")


@dataclass(frozen=True)
class ServerTimeouts:
    """Seconds.

    call      the longest that a call through Ray waits for a change; the caller then calls again
    absence   a job that has not called for this long has died; it may write to the store in between
    check     interval of checks whether the pool is idle
    """

    call: float = 10.0
    absence: float = 30.0
    check: float = 1.0


class PoolServer:
    """The queue, and the jobs and ranks that wait for changes of it.

    `idle_seconds`: the pool ends after this long without an attempt; every job sets it. `end` is
    called once the pool has closed and its queue is empty.
    """

    def __init__(
        self,
        setup: PoolSetup,
        idle_seconds: float,
        end: Callable[[], None],
        timeouts: ServerTimeouts = ServerTimeouts(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = JobQueue(clock)
        self._setup, self._idle_seconds, self._end = setup, idle_seconds, end
        self._timeouts = timeouts
        self._changed = asyncio.Event()
        self._is_closing = False
        # Jobs that poll through Ray: the timer after which each counts as dead.
        self._absences: dict[Attempt, asyncio.TimerHandle] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one job at the socket, from its request to its final status or its end."""
        disconnected = None
        try:
            request = Request.from_line(await reader.readline())
            disconnected = asyncio.ensure_future(reader.read())
            await self._serve(request, writer, disconnected)
        except (ValueError, TypeError, KeyError) as error:
            self._reject_unknown(error)
        except ConnectionError:
            pass  # The job has gone, and `_serve` has removed its attempt.
        finally:
            if disconnected is not None:
                disconnected.cancel()
            writer.close()

    async def poll(self, request_line: bytes, known_line: bytes) -> bytes:
        """Status for a job that polls: as soon as it differs from the known one, or after a while."""
        try:
            request, known = Request.from_line(request_line), status_from_line(known_line)
        except (ValueError, TypeError, KeyError) as error:
            return status_to_line(AttemptStatus("rejected", self._reject_unknown(error)))
        attempt = request.attempt
        if attempt not in self._absences and (rejection := self._rejection(request)):
            return status_to_line(rejection)
        self._keep_alive(request)
        status = await self.until(lambda: self._changed_status(attempt, known)) or known
        if status.is_final:
            self._forget(attempt)
        return status_to_line(status)

    def disconnect(self, request_line: bytes) -> None:
        """Remove the attempt of a job that polls no longer."""
        self._forget(Request.from_line(request_line).attempt)

    async def until(self, look: Callable[[], T | None]) -> T | None:
        """What `look` returns as soon as that is true; None after the timeout of a call."""
        deadline = time.monotonic() + self._timeouts.call
        while not (found := look()):
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return None
        return found

    def notify(self) -> None:
        """Wake all that wait for a change of the queue."""
        self._changed.set()
        self._changed = asyncio.Event()
        self._end_if_idle()

    async def close_when_idle(self) -> None:
        """Close after `idle_seconds` without an attempt, so that the cluster can scale down."""
        while not 0 < self._idle_seconds <= self.queue.idle_seconds:
            await asyncio.sleep(self._timeouts.check)
        print(f"no attempt for {self._idle_seconds:g} s: the pool ends", flush=True)
        self._start_closing()

    async def _serve(
        self, request: Request, writer: asyncio.StreamWriter, disconnected: "asyncio.Future[bytes]"
    ) -> None:
        if rejection := self._rejection(request):
            await _send(writer, rejection)
            return
        self._join(request)
        try:
            await self._send_changes(request.attempt, writer, disconnected)
        finally:
            self._disconnect(request.attempt)

    async def _send_changes(
        self, attempt: Attempt, writer: asyncio.StreamWriter, disconnected: "asyncio.Future[bytes]"
    ) -> None:
        """Send every change of the status, until it is final or the job has disconnected."""
        sent: AttemptStatus | None = None
        while not disconnected.done() and not (sent and sent.is_final):
            status = self.queue.status(attempt)
            if status != sent:
                await _send(writer, status)
                sent = status
                continue
            changed = asyncio.ensure_future(self._changed.wait())
            either: list[asyncio.Future[Any]] = [changed, disconnected]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()

    def _rejection(self, request: Request) -> AttemptStatus | None:
        """The status of an attempt that needs another setup; the pool then closes for it."""
        differences = self._setup.differences(request.setup)
        if not self._is_closing and not differences:
            return None
        self._start_closing()
        return AttemptStatus("rejected", differences or _CLOSING)

    def _reject_unknown(self, error: Exception) -> str:
        message = f"a request of another release cannot be read: {error!r}"
        print(message, flush=True)
        self._start_closing()
        return message

    def _keep_alive(self, request: Request) -> None:
        """Join the queue, or postpone the time at which the job counts as dead."""
        attempt = request.attempt
        if attempt in self._absences:
            self._absences[attempt].cancel()
        else:
            self._join(request)
        loop = asyncio.get_running_loop()
        seconds = self._timeouts.call + self._timeouts.absence
        self._absences[attempt] = loop.call_later(seconds, self._forget, attempt)

    def _forget(self, attempt: Attempt) -> None:
        """Leave the queue, once: a job may disconnect while one of its calls is still waiting."""
        if absence := self._absences.pop(attempt, None):
            absence.cancel()
            self._disconnect(attempt)

    def _changed_status(self, attempt: Attempt, known: AttemptStatus) -> AttemptStatus | None:
        status = self.queue.status(attempt)
        return None if status == known else status

    def _join(self, request: Request) -> None:
        self._idle_seconds = request.idle_seconds
        self.queue.join(request.attempt, request.owner)
        self.notify()

    def _disconnect(self, attempt: Attempt) -> None:
        self.queue.leave(attempt)
        self.notify()

    def _start_closing(self) -> None:
        """Accept no further attempts, and end once the queue is empty."""
        self._is_closing = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._is_closing and self.queue.is_empty:
            # Later, so that responses on their way arrive.
            asyncio.get_running_loop().call_later(_CLOSING_SECONDS, self._close)

    def _close(self) -> None:
        """End, unless an attempt joined before closing started."""
        if self.queue.is_empty:
            self._end()


async def _send(writer: asyncio.StreamWriter, status: AttemptStatus) -> None:
    writer.write(status_to_line(status))
    await writer.drain()
