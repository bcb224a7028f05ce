"""Events as they happen: over one stream, or by polling where the service has no streams.

A stream breaks with each restart of the service and each impatient proxy. The feed reconnects after
the last event that it has seen, so none is missed and none comes twice.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import httpx
from httpx_sse import EventSource, ServerSentEvent
from pydantic import ValidationError

from cmcl.client._async.session import AsyncSession
from cmcl.client.answers import FINAL_STATES, Event, Job
from cmcl.client.concurrency import Clock
from cmcl.client.errors import CmclError, may_pass
from cmcl.client.wire import (
    Params,
    Request,
    Side,
    check_server,
    is_stream,
    refused,
    segment,
    unreachable,
)

FINAL_KINDS = frozenset(f"job.{state}" for state in FINAL_STATES)
PROGRESS = "progress"

_NO_STREAM = frozenset({404, 405, 406, 501})
_FOREVER = float("inf")
# Bounds the pauses between attempts, so that a service that is back is soon noticed.
_MOST_DOUBLINGS = 5
# Seconds; longer than the pause between two heartbeats.
_LONGEST_SILENCE = 45.0


@dataclass(frozen=True)
class Waiting:
    """When to stop listening (`until`, in the client's clock), and how to wait.

    `patience`: seconds without a service that answers. `poll_seconds`: where there is no stream.
    """

    until: float = _FOREVER
    patience: float = 60.0
    poll_seconds: float = 0.2


class Silence:
    """Measures for how long the service has not answered."""

    def __init__(self, clock: Clock, patience: float) -> None:
        self._clock, self._patience = clock, patience
        self._since: float | None = None

    def check(self, error: CmclError) -> None:
        """Raise `error` once it has lasted for longer than the patience."""
        if self._since is None:
            self._since = self._clock.now()
        elif self._clock.now() - self._since >= self._patience:
            raise error

    def end(self) -> None:
        """The service has answered."""
        self._since = None


class NoStream(Exception):
    """The service has no events under this address."""


class _Over(Exception):
    """The feed has ended."""


class Feed:
    """Events of one address."""

    def __init__(self, session: AsyncSession, path: str, params: Params, waiting: Waiting) -> None:
        self._session, self._path, self._params = session, path, params
        self._clock, self._retries = session.clock, session.retries
        self._waiting = waiting
        self._open = AsyncExitStack()
        self._events: AsyncIterator[ServerSentEvent] | None = None
        self._last_id = ""
        self._failures = 0
        self._silence = Silence(self._clock, waiting.patience)
        self._ends_here = False
        self._asked_for_more = False
        self._reconnect_seconds = self._retries.pause(1)

    async def next(self) -> Event | None:
        """The next event; None at the end, or when the time is over.

        Raises NoStream, and CmclError where the service refuses or is away for too long.
        """
        while self._clock.now() < self._waiting.until:
            try:
                arrived = await self._arrived()
            except _Over:
                return None
            except CmclError as error:
                await self._lose(error)
                continue
            event = self._event(arrived) if arrived else None
            if event is not None:
                return event
        return None

    async def aclose(self) -> None:
        """Close the stream."""
        events, self._events = self._events, None
        if isinstance(events, AsyncGenerator):
            await events.aclose()
        with suppress(httpx.TransportError):
            await self._open.aclose()

    async def _arrived(self) -> ServerSentEvent | None:
        """The next event of the stream; None where it has ended, and may be opened again."""
        try:
            if self._events is None:
                await self._connect()
            arrived = await anext(self._events, None) if self._events is not None else None
        except httpx.TransportError as error:
            raise unreachable(Side.SERVICE, error) from error
        if arrived is not None:
            self._failures, self._asked_for_more = 0, False
            self._silence.end()
            return arrived
        await self.aclose()
        await self._await_more()
        return None

    async def _await_more(self) -> None:
        """Wait before a stream that has ended is opened again; after the job's end, open it once more."""
        if not self._ends_here:
            await self._clock.async_sleep(self._reconnect_seconds)
        elif self._asked_for_more:
            raise _Over
        self._asked_for_more = True

    async def _connect(self) -> None:
        """Open the stream. Raises _Over if the service reports the end of the feed."""
        await self.aclose()
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self._last_id:
            headers["last-event-id"] = self._last_id
        request = Request("GET", self._path, params=self._params, headers=headers)
        left = max(0.001, min(_LONGEST_SILENCE, self._waiting.until - self._clock.now()))
        response = await self._open.enter_async_context(self._session.stream(request, left))
        if is_stream(response):
            bounded = _BoundedBytes(response, self._waiting.until, self._clock)
            kept = {"content-type": response.headers.get("content-type", "")}
            source = httpx.Response(response.status_code, headers=kept, stream=bounded)
            self._events = EventSource(source).aiter_sse()
            return
        await response.aread()
        await self.aclose()
        if response.status_code == httpx.codes.NO_CONTENT:
            raise _Over
        check_server(Side.SERVICE, response)
        if response.is_success or response.status_code in _NO_STREAM:
            raise NoStream
        raise refused(Side.SERVICE, response)

    async def _lose(self, error: CmclError) -> None:
        """Wait before the next attempt. Raises an error that will not pass, or has lasted too long."""
        if not may_pass(error):
            raise error
        now = self._clock.now()
        if now >= self._waiting.until:
            return
        await self.aclose()
        self._failures += 1
        self._silence.check(error)
        pause = self._retries.pause(min(self._failures, _MOST_DOUBLINGS))
        await self._clock.async_sleep(min(pause, self._waiting.until - now))

    def _event(self, arrived: ServerSentEvent) -> Event | None:
        """None for an event without data, and for data of an unknown form."""
        if arrived.retry is not None:
            self._reconnect_seconds = arrived.retry / 1000
        # The protocol's last id stays in force over events that have none of their own.
        is_numbered = bool(arrived.id) and arrived.id != self._last_id
        self._last_id = arrived.id or self._last_id
        event = parse_event(arrived.event, arrived.data, arrived.id if is_numbered else None)
        # Events about the job's version may follow the one of its end.
        if event is not None and event.kind.startswith("job."):
            self._ends_here = event.kind in FINAL_KINDS
        return event


class JobEvents:
    """Events of one job, with or without streams."""

    def __init__(self, session: AsyncSession, job: str, waiting: Waiting) -> None:
        self._session, self._job, self._waiting = session, job, waiting
        self._path = f"/v1/jobs/{segment(job)}"
        self._feed = self._new_feed()
        self._polls: Polls | None = None

    async def next(self) -> Event | None:
        """See Feed. Where there is no stream, the job is polled from then on."""
        if self._polls is None:
            try:
                return await self._feed.next()
            except NoStream:
                self._polls = Polls(self._session, self._path, self._waiting)
        return await self._polls.next()

    async def restart(self) -> None:
        """Listen from the first event on."""
        await self._feed.aclose()
        self._feed, self._polls = self._new_feed(), None

    async def aclose(self) -> None:
        """Close the stream."""
        await self._feed.aclose()

    def _new_feed(self) -> Feed:
        return Feed(self._session, f"{self._path}/events", {}, self._waiting)


class Polls:
    """Changes of a job's state and progress, found by reading it again and again."""

    def __init__(self, session: AsyncSession, path: str, waiting: Waiting) -> None:
        self._session, self._path, self._waiting = session, path, waiting
        self._clock = session.clock
        self._seen: Job | None = None
        self._silence = Silence(self._clock, waiting.patience)

    async def next(self) -> Event | None:
        """See Feed."""
        while not (self._seen and self._seen.has_ended) and self._has_time():
            now = await self._look()
            before, self._seen = self._seen, now or self._seen
            if now is not None and before != now:
                return _seen_event(before, now)
            await self._clock.async_sleep(self._waiting.poll_seconds)
        return None

    def _has_time(self) -> bool:
        return self._clock.now() < self._waiting.until

    async def _look(self) -> Job | None:
        """None while the service is away."""
        try:
            job = await self._session.get(Job, self._path)
        except CmclError as error:
            if not may_pass(error):
                raise
            self._silence.check(error)
            return None
        self._silence.end()
        return job


class _BoundedBytes(httpx.AsyncByteStream):
    """The bytes of a stream until a moment; then httpx.ReadTimeout.

    A server without events sends heartbeats, so no timeout of a read ends a stream.
    """

    def __init__(self, response: httpx.Response, until: float, clock: Clock) -> None:
        self._response, self._until, self._clock = response, until, clock

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_bytes():
            yield chunk
            if self._clock.now() >= self._until:
                request = self._response.request
                raise httpx.ReadTimeout("the time for listening is over", request=request)


def parse_event(kind: str, data: str, own_id: str | None) -> Event | None:
    """An event from the fields of a server-sent event; None if it is of an unknown form."""
    try:
        told = json.loads(data) if data else None
    except ValueError as error:
        raise CmclError(f"an event of the service is not JSON: {data[:200]}") from error
    if not isinstance(told, dict):
        return None
    if kind == PROGRESS:
        return Event(kind=kind, details=told)
    number = int(own_id) if own_id and own_id.isdecimal() else None
    try:
        return Event.model_validate({"kind": kind, "id": number, **told}, extra="allow")
    except ValidationError:
        return None


def _seen_event(before: Job | None, now: Job) -> Event:
    moved = before is None or before.state != now.state
    details = {"state": now.state, "reason": now.reason, "message": now.message}
    progress = now.progress.model_dump(mode="json") if now.progress else {}
    return Event(
        kind=f"job.{now.state}" if moved else PROGRESS,
        model=now.model,
        dataset=now.dataset,
        job=now.id,
        version=now.version,
        details=details if moved else progress,
        created_at=now.state_changed_at if moved else None,
    )
