# Generated from cmcl/client/_async/events.py by `make docs`; edit that file.
"""Events of jobs and of the service, from a stream of server-sent events or by polling.

A stream breaks when the service restarts or a proxy times out. The feed reconnects after the last
event that it received, so no event is missed or repeated.
"""

import json
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import httpx
from httpx_sse import EventSource, ServerSentEvent
from pydantic import ValidationError

from cmcl.client._sync.session import Session
from cmcl.client.concurrency import Clock
from cmcl.client.errors import CmclError, is_transient
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
from cmcl.contract.api.events import Event, StreamedEvent
from cmcl.contract.api.jobs import FINAL_STATES, Job

FINAL_KINDS = frozenset(f"job.{state}" for state in FINAL_STATES)
# Without a number: a stream does not resume after them.
PROGRESS, PREPARATION = "progress", "preparation"

_NO_STREAM = frozenset({404, 405, 406, 501})
_FOREVER = float("inf")
# Bounds the pauses between attempts, so that a restarted service is detected soon.
_MOST_DOUBLINGS = 5
# Seconds; longer than the interval of heartbeats.
_LONGEST_SILENCE = 45.0


@dataclass(frozen=True)
class WaitOptions:
    """When to stop (`until`, by the client's clock), and how to wait.

    outage_timeout: seconds that the service may be unavailable. poll_seconds: polling interval if the
    service has no streams.
    """

    until: float = _FOREVER
    outage_timeout: float = 60.0
    poll_seconds: float = 0.2


class OutageTimer:
    """Measures how long the service has been unavailable."""

    def __init__(self, clock: Clock, outage_timeout: float) -> None:
        self._clock, self._timeout = clock, outage_timeout
        self._since: float | None = None

    def check(self, error: CmclError) -> None:
        """Raise `error` if the outage has lasted longer than the timeout."""
        if self._since is None:
            self._since = self._clock.now()
        elif self._clock.now() - self._since >= self._timeout:
            raise error

    def end(self) -> None:
        """Reset the timer, because the service has responded."""
        self._since = None


class NoStream(Exception):
    """The service has no event stream at this address."""


class _EndOfFeed(Exception):
    """The feed has ended."""


class Feed:
    """Events from one address."""

    def __init__(self, session: Session, path: str, params: Params, waiting: WaitOptions) -> None:
        self._session, self._path, self._params = session, path, params
        self._clock, self._retries = session.clock, session.retries
        self._waiting = waiting
        self._open = ExitStack()
        self._events: Iterator[ServerSentEvent] | None = None
        self._last_id = ""
        self._failures = 0
        self._outage = OutageTimer(self._clock, waiting.outage_timeout)
        self._ends_here = False
        self._reopened = False
        self._reconnect_seconds = self._retries.pause(1)

    def next(self) -> StreamedEvent | None:
        """Return the next event, or None at the end of the feed or of the time.

        Raises NoStream, and CmclError if the request is rejected or the outage lasts too long.
        """
        while self._clock.now() < self._waiting.until:
            try:
                arrived = self._arrived()
            except _EndOfFeed:
                return None
            except CmclError as error:
                self._lose(error)
                continue
            event = self._event(arrived) if arrived else None
            if event is not None:
                return event
        return None

    def close(self) -> None:
        """Close the stream."""
        events, self._events = self._events, None
        if isinstance(events, Generator):
            events.close()
        with suppress(httpx.TransportError):
            self._open.close()

    def _arrived(self) -> ServerSentEvent | None:
        """Return the next event of the stream, or None if the stream ended and should be reopened."""
        try:
            if self._events is None:
                self._connect()
            arrived = next(self._events, None) if self._events is not None else None
        except httpx.TransportError as error:
            raise unreachable(Side.SERVICE, error) from error
        if arrived is not None:
            self._failures, self._reopened = 0, False
            self._outage.end()
            return arrived
        self.close()
        self._await_more()
        return None

    def _await_more(self) -> None:
        """Wait before reopening a stream. After the end of the job, reopen it only once."""
        if not self._ends_here:
            self._clock.sleep(self._reconnect_seconds)
        elif self._reopened:
            raise _EndOfFeed
        self._reopened = True

    def _connect(self) -> None:
        """Open the stream. Raises _EndOfFeed on status 204."""
        self.close()
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self._last_id:
            headers["last-event-id"] = self._last_id
        request = Request("GET", self._path, params=self._params, headers=headers)
        left = max(0.001, min(_LONGEST_SILENCE, self._waiting.until - self._clock.now()))
        response = self._open.enter_context(self._session.stream(request, left))
        if is_stream(response):
            bounded = _BoundedBytes(response, self._waiting.until, self._clock)
            kept = {"content-type": response.headers.get("content-type", "")}
            source = httpx.Response(response.status_code, headers=kept, stream=bounded)
            self._events = EventSource(source).iter_sse()
            return
        response.read()
        self.close()
        if response.status_code == httpx.codes.NO_CONTENT:
            raise _EndOfFeed
        check_server(Side.SERVICE, response)
        if response.is_success or response.status_code in _NO_STREAM:
            raise NoStream
        raise refused(Side.SERVICE, response)

    def _lose(self, error: CmclError) -> None:
        """Wait before the next attempt. Raises permanent errors, and those that last too long."""
        if not is_transient(error):
            raise error
        now = self._clock.now()
        if now >= self._waiting.until:
            return
        self.close()
        self._failures += 1
        self._outage.check(error)
        pause = self._retries.pause(min(self._failures, _MOST_DOUBLINGS))
        self._clock.sleep(min(pause, self._waiting.until - now))

    def _event(self, arrived: ServerSentEvent) -> StreamedEvent | None:
        """Parse an event. Return None if it has no data, or data of an unknown form."""
        if arrived.retry is not None:
            self._reconnect_seconds = arrived.retry / 1000
        # By the protocol, the last id remains valid for events without an id.
        is_numbered = bool(arrived.id) and arrived.id != self._last_id
        self._last_id = arrived.id or self._last_id
        event = parse_event(arrived.event, arrived.data, arrived.id if is_numbered else None)
        # Events about the job's version may follow the final event of the job.
        if event is not None and event.kind.startswith("job."):
            self._ends_here = event.kind in FINAL_KINDS
        return event


class JobEvents:
    """Events of one job, with or without streams."""

    def __init__(self, session: Session, job: str, waiting: WaitOptions) -> None:
        self._session, self._job, self._waiting = session, job, waiting
        self._path = f"/v1/jobs/{segment(job)}"
        self._feed = self._new_feed()
        self._polls: Polls | None = None

    def next(self) -> StreamedEvent | None:
        """Return the next event, see Feed. Polls the job if the service has no streams."""
        if self._polls is None:
            try:
                return self._feed.next()
            except NoStream:
                self._polls = Polls(self._session, self._path, self._waiting)
        return self._polls.next()

    def restart(self) -> None:
        """Start again from the first event."""
        self._feed.close()
        self._feed, self._polls = self._new_feed(), None

    def close(self) -> None:
        """Close the stream."""
        self._feed.close()

    def _new_feed(self) -> Feed:
        return Feed(self._session, f"{self._path}/events", {}, self._waiting)


class Polls:
    """Changes of a job's state and progress, found by polling."""

    def __init__(self, session: Session, path: str, waiting: WaitOptions) -> None:
        self._session, self._path, self._waiting = session, path, waiting
        self._clock = session.clock
        self._seen: Job | None = None
        self._outage = OutageTimer(self._clock, waiting.outage_timeout)

    def next(self) -> StreamedEvent | None:
        """Return the next change, see Feed."""
        while not (self._seen and self._seen.has_ended) and self._has_time():
            now = self._poll()
            before, self._seen = self._seen, now or self._seen
            if now is not None and before != now:
                return _seen_event(before, now)
            self._clock.sleep(self._waiting.poll_seconds)
        return None

    def _has_time(self) -> bool:
        return self._clock.now() < self._waiting.until

    def _poll(self) -> Job | None:
        """Read the job. Return None while the service is unavailable."""
        try:
            job = self._session.get(Job, self._path)
        except CmclError as error:
            if not is_transient(error):
                raise
            self._outage.check(error)
            return None
        self._outage.end()
        return job


class _BoundedBytes(httpx.SyncByteStream):
    """Stream of bytes that raises httpx.ReadTimeout after a deadline.

    A read timeout does not end an idle stream, because the server sends heartbeats.
    """

    def __init__(self, response: httpx.Response, until: float, clock: Clock) -> None:
        self._response, self._until, self._clock = response, until, clock

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._response.iter_bytes():
            yield chunk
            if self._clock.now() >= self._until:
                request = self._response.request
                raise httpx.ReadTimeout("the time limit of the stream has expired", request=request)


def parse_event(kind: str, data: str, own_id: str | None) -> StreamedEvent | None:
    """Parse a server-sent event. Return None if its form is unknown."""
    try:
        fields = json.loads(data) if data else None
    except ValueError as error:
        raise CmclError(f"an event of the service is not valid JSON: {data[:200]}") from error
    if not isinstance(fields, dict):
        return None
    if kind in (PROGRESS, PREPARATION):
        return StreamedEvent(kind=kind, details=fields)
    number = int(own_id) if own_id and own_id.isdecimal() else None
    values = {"kind": kind, "id": number, **fields}
    # An event of another release may lack fields.
    for form in (Event, StreamedEvent):
        with suppress(ValidationError):
            return form.model_validate(values, extra="allow")
    return None


def _seen_event(before: Job | None, now: Job) -> StreamedEvent:
    moved = before is None or before.state != now.state
    details = {"state": now.state, "reason": now.reason, "message": now.message}
    is_preparing = now.state == "preparing"
    report = now.preparation if is_preparing else now.progress
    progress = report.model_dump(mode="json") if report else {}
    return StreamedEvent(
        kind=f"job.{now.state}" if moved else PREPARATION if is_preparing else PROGRESS,
        model=now.model,
        dataset=now.dataset,
        job=now.id,
        version=now.version,
        details=details if moved else progress,
        created_at=now.state_changed_at if moved else None,
    )
