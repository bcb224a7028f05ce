"""Events as they happen: over one stream where there is one, by asking again and again elsewhere.

A stream breaks with every restart of the service and every proxy that loses patience. The feed
connects again behind the last event that it has seen, so none is missed and none comes twice.
"""

import json
from dataclasses import dataclass

import httpx
from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from cmcl.errors import CmclError, may_pass
from cmcl.flow.api import Api, check_server, refused, segment, unreachable
from cmcl.flow.effects import (
    Exchange,
    Flow,
    Listen,
    Params,
    Pause,
    Side,
    is_stream,
    listen,
    next_event,
)
from cmcl.types import FINAL_STATES, Event, Job

FINAL_KINDS = frozenset(f"job.{state}" for state in FINAL_STATES)
PROGRESS = "progress"

_NO_STREAM = frozenset({404, 405, 406, 501})
_FOREVER = float("inf")
# Whoever waits for a service to come back wants to know soon when it has.
_MOST_DOUBLINGS = 5


@dataclass(frozen=True)
class Waiting:
    """How long to listen (`until`, in the client's clock), and what silence to put up with.

    `patience`: seconds without a service that answers. `poll_seconds`: where there is no stream.
    """

    until: float = _FOREVER
    patience: float = 60.0
    poll_seconds: float = 0.2


class Silence:
    """How long the service has been away: it restarts, or a proxy says so in its place."""

    def __init__(self, api: Api, waiting: Waiting) -> None:
        self._clock, self._patience = api.clock, waiting.patience
        self._since: float | None = None

    def check(self, error: CmclError) -> None:
        """Raises `error` when there was no patience left for it."""
        if self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since >= self._patience:
            raise error

    def end(self) -> None:
        """It has answered."""
        self._since = None


class NoStream(Exception):
    """The service has no events under this address."""


class _Over(Exception):
    """There is nothing more to come."""


class Feed:
    """Events of one address."""

    def __init__(self, api: Api, path: str, params: Params, waiting: Waiting) -> None:
        self._api, self._path, self._params = api, path, params
        self._waiting = waiting
        self._last_id = ""
        self._is_connected = False
        self._failures = 0
        self._silence = Silence(api, waiting)
        self._ends_here = False
        self._asked_for_more = False
        self._reconnect_seconds = api.retries.pause(1)

    def next(self) -> Flow[Event | None]:
        """The next event; None at the end, or when the time is over.

        Raises NoStream, and CmclError where the service refuses, or stays away for too long.
        """
        while self._api.clock() < self._waiting.until:
            try:
                arrived = yield from self._arrived()
            except _Over:
                return None
            except CmclError as error:
                yield from self._lose(error)
                continue
            event = self._event(arrived) if arrived else None
            if event is not None:
                return event
        return None

    def _arrived(self) -> Flow[ServerSentEvent | None]:
        """What comes next over the stream; None where it has ended, and may be opened again."""
        try:
            if not self._is_connected:
                yield from self._connect()
            arrived = yield from next_event()
        except httpx.TransportError as error:
            raise unreachable(Side.SERVICE, error) from error
        if arrived is not None:
            self._failures, self._asked_for_more = 0, False
            self._silence.end()
            return arrived
        self._is_connected = False
        yield from self._await_more()
        return None

    def _await_more(self) -> Flow[None]:
        """Before a stream that has ended is opened again: at once, once, where the job has ended."""
        if not self._ends_here:
            yield Pause(self._reconnect_seconds)
        elif self._asked_for_more:
            raise _Over
        self._asked_for_more = True

    def _connect(self) -> Flow[None]:
        """Raises _Over where the service says that there will be no more events."""
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if self._last_id:
            headers["last-event-id"] = self._last_id
        request = Exchange("GET", self._path, params=self._params, headers=headers)
        response = yield from listen(Listen(request, self._waiting.until))
        if response.status_code == httpx.codes.NO_CONTENT:
            raise _Over
        self._is_connected = is_stream(response)
        if not self._is_connected:
            check_server(Side.SERVICE, response)
            if response.is_success or response.status_code in _NO_STREAM:
                raise NoStream
            raise refused(Side.SERVICE, response)

    def _lose(self, error: CmclError) -> Flow[None]:
        """Wait before the next attempt. Raises what will not pass, or has lasted for too long."""
        if not may_pass(error):
            raise error
        now = self._api.clock()
        if now >= self._waiting.until:
            return
        self._is_connected = False
        self._failures += 1
        self._silence.check(error)
        pause = self._api.retries.pause(min(self._failures, _MOST_DOUBLINGS))
        yield Pause(min(pause, self._waiting.until - now))

    def _event(self, arrived: ServerSentEvent) -> Event | None:
        """None for what has no data, and for data of a form that this client does not know."""
        if arrived.retry is not None:
            self._reconnect_seconds = arrived.retry / 1000
        # The protocol's last id stays in force over events that have none of their own.
        is_numbered = bool(arrived.id) and arrived.id != self._last_id
        self._last_id = arrived.id or self._last_id
        event = parse_event(arrived.event, arrived.data, arrived.id if is_numbered else None)
        # What becomes of its version is told behind a job's end.
        if event is not None and event.kind.startswith("job."):
            self._ends_here = event.kind in FINAL_KINDS
        return event


class JobEvents:
    """Events of one job, whether or not the service has streams."""

    def __init__(self, api: Api, job: str, waiting: Waiting) -> None:
        self._source: Feed | Polls = Feed(api, f"/v1/jobs/{segment(job)}/events", {}, waiting)
        self._polls = Polls(api, job, waiting)

    def next(self) -> Flow[Event | None]:
        """See Feed; NoStream is no reason to give up here."""
        try:
            return (yield from self._source.next())
        except NoStream:
            self._source = self._polls
            return (yield from self._polls.next())


class Polls:
    """Events of a job, as far as they can be seen from outside: changes of state and of progress."""

    def __init__(self, api: Api, job: str, waiting: Waiting) -> None:
        self._api, self._job, self._waiting = api, job, waiting
        self._seen: Job | None = None
        self._silence = Silence(api, waiting)

    def next(self) -> Flow[Event | None]:
        """See Feed."""
        while not (self._seen and self._seen.has_ended) and self._has_time():
            now = yield from self._look()
            before, self._seen = self._seen, now or self._seen
            if now is not None and before != now:
                return _seen_event(before, now)
            yield Pause(self._waiting.poll_seconds)
        return None

    def _has_time(self) -> bool:
        return self._api.clock() < self._waiting.until

    def _look(self) -> Flow[Job | None]:
        """None while the service is away."""
        try:
            job = yield from self._api.get(Job, f"/v1/jobs/{segment(self._job)}")
        except CmclError as error:
            if not may_pass(error):
                raise
            self._silence.check(error)
            return None
        self._silence.end()
        return job


def parse_event(kind: str, data: str, own_id: str | None) -> Event | None:
    """An event as it came over a stream."""
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
