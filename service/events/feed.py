"""Streams events to the listeners of this process.

One poll of the database serves all listeners: every quarter of a second while there are any, three
short queries (unnumbered events, new events, progress of watched jobs), for one listener or a thousand.
The results are distributed in memory. Only a new listener reads the database itself, to catch up.

A listener that falls behind is disconnected: it reconnects and resumes where it was, which costs less
than buffering everything. If all slots are taken, the oldest listener of the owner with the most is
disconnected for an owner with fewer; so one owner alone may use all slots.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cmcl.contract.api.jobs import FINAL_STATES
from service.core.errors import TooManyRequests
from service.database.engine import Database, Seek
from service.database.queries import events
from service.database.queries.events import EventFilter, Newest
from service.database.rows import EventRow

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_PAGE = 200
_MOST_LISTENERS = 1000
_RETRY_AFTER_SECONDS = 10
# How many items a listener may fall behind before it is disconnected.
_MOST_WAITING = 256
# Streams end after this time and listeners reconnect, so that revoked keys take effect and
# listeners spread over the instances.
_LONGEST_STREAM_SECONDS = 900.0
# A job ends with these, unless a user retries it.
FINAL = frozenset(f"job.{state}" for state in FINAL_STATES)


@dataclass(frozen=True)
class Progress:
    """Progress of a job's attempt, or of its preparation: not an event; only the newest counts."""

    job: str
    newest: Newest


Item = EventRow | Progress


@dataclass(frozen=True)
class _Seen:
    """The result of one poll."""

    events: list[EventRow]
    progress: dict[str, Newest]


def number_events(database: Database) -> None:
    """Number all committed events; writes only if there are unnumbered ones."""
    with database.read() as connection:
        if not events.has_unnumbered(connection):
            return
    numbered = events.MOST_AT_ONCE
    while numbered == events.MOST_AT_ONCE:
        with database.write() as connection:
            numbered = events.number(connection)


class _Listener:
    """One listener's queue. It ends with None, an overflow, or at `until`."""

    def __init__(self, wanted: EventFilter, owner: str | None, until: float) -> None:
        self.wanted = wanted
        self.owner = owner
        # All events after this position are offered to it; None: not known.
        self.since: int | None = None
        # In the event loop's time.
        self._until = until
        self._is_ended = False
        self._items: asyncio.Queue[Item | None] = asyncio.Queue(_MOST_WAITING)
        self._is_behind = False

    def offer(self, item: Item | None) -> None:
        """Queue an item without blocking, so that a slow listener does not delay others."""
        self._is_ended = self._is_ended or item is None
        try:
            self._items.put_nowait(item)
        except asyncio.QueueFull:
            self._is_behind = True

    @property
    def is_over(self) -> bool:
        """Whether it was ended or its time is up; then not even stored events are read for it."""
        return self._is_ended or asyncio.get_running_loop().time() >= self._until

    async def next(self) -> Item | None:
        """The next item; None if it fell behind, was ended, or `until` has passed."""
        if self._is_behind:
            return None
        seconds = self._until - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(self._items.get(), max(seconds, 0.0))
        except TimeoutError:
            return None


class Feed:
    """The listeners of one process, and the task that polls while there are any."""

    def __init__(
        self,
        database: Database,
        poll_seconds: float = _POLL_SECONDS,
        longest_seconds: float = _LONGEST_STREAM_SECONDS,
        most_listeners: int = _MOST_LISTENERS,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._longest_seconds = longest_seconds
        self._most_listeners = most_listeners
        # Checked at every poll, so that a server that is stopping need not wait long for its streams.
        self._is_stopping = is_stopping
        # In order of arrival.
        self._listeners: dict[_Listener, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._next_newest: asyncio.Task[int] | None = None
        self._position = 0
        self._progress: dict[str, Newest] = {}

    @property
    def is_polling(self) -> bool:
        return self._task is not None and not self._task.done()

    def check_room(self, owner: str | None) -> None:
        """Raises TooManyRequests if there is no slot for the owner (None: the operator)."""
        if len(self._listeners) >= self._most_listeners and self._excess(owner) is None:
            message = (
                f"all {self._most_listeners} streams are in use; read pages, or try again later"
            )
            raise TooManyRequests(message, _RETRY_AFTER_SECONDS)

    async def start(self, after: int | None) -> int:
        """The position after which a stream begins: `after`, or else the newest event.

        A position beyond the newest one comes from a database that has lost events (a restored
        backup): waiting until it is reached again would skip all events until then.
        """
        newest = await self._newest_of_now()
        return newest if after is None else min(after, newest)

    async def _newest_of_now(self) -> int:
        """Shared by all callers that arrive before the read begins: many streams may start together."""
        if self._next_newest is None or self._next_newest.done():
            self._next_newest = asyncio.create_task(self._read_newest())
        return await asyncio.shield(self._next_newest)

    async def _read_newest(self) -> int:
        async with self._reading:
            # Later callers need a read that sees later commits.
            self._next_newest = None
            return await asyncio.to_thread(self._newest)

    async def follow(
        self, wanted: EventFilter, after: int, owner: str | None, seconds: float | None = None
    ) -> AsyncGenerator[Item, None]:
        """Events after `after`: stored ones, then new ones, for `seconds` if given."""
        async with self._listen(wanted, owner, seconds) as listener:
            async for event in self._stored(listener, after):
                after = event.sequence
                yield event
            if listener.is_over:
                # Stored events may be left, and queued ones must not overtake them.
                return
            while (item := await listener.next()) is not None:
                if isinstance(item, EventRow) and item.sequence > after:
                    after = item.sequence
                    yield item

    async def follow_job(
        self, job: str, after: int, owner: str | None, seconds: float | None = None
    ) -> AsyncGenerator[Item, None]:
        """A job's events and progress, until an event that ends it, or for `seconds` if given."""
        wanted = EventFilter(job=job)
        last: str | None = None
        async with self._listen(wanted, owner, seconds) as listener:
            async for event in self._stored(listener, after):
                after, last = event.sequence, event.kind
                yield event
            if listener.is_over:
                return
            while last not in FINAL:
                item = await listener.next()
                if item is None:
                    return
                if isinstance(item, EventRow):
                    if item.sequence <= after:
                        continue
                    after, last = item.sequence, item.kind
                yield item

    @asynccontextmanager
    async def _listen(
        self, wanted: EventFilter, owner: str | None, seconds: float | None
    ) -> AsyncIterator[_Listener]:
        """Register a listener; database reads after this leave no gap."""
        longest = self._longest_seconds if seconds is None else min(seconds, self._longest_seconds)
        until = asyncio.get_running_loop().time() + longest
        listener = _Listener(wanted, owner, until)
        if self.is_polling:
            listener.since = self._position
        self._add(listener)
        try:
            async with self._starting:
                if not self.is_polling:
                    self._position = await asyncio.to_thread(self._newest)
                    self._progress = {}
                    self._task = asyncio.create_task(self._run())
            if wanted.job in self._progress:
                listener.offer(Progress(wanted.job, self._progress[wanted.job]))
            yield listener
        finally:
            self._listeners.pop(listener, None)

    def _add(self, listener: _Listener) -> None:
        """Add it, in place of an excess one if all slots are taken; otherwise end it at once.

        Others may have come since `check_room`, because a stream starts some loop iterations later.
        """
        if len(self._listeners) >= self._most_listeners:
            excess = self._excess(listener.owner)
            if excess is None:
                listener.offer(None)
                return
            del self._listeners[excess]
            excess.offer(None)
        assert len(self._listeners) < self._most_listeners
        self._listeners[listener] = None

    def _excess(self, owner: str | None) -> _Listener | None:
        """The oldest listener of the owner with the most, if it has at least two more than this owner."""
        counts = Counter(each.owner for each in self._listeners)
        greediest, most = max(counts.items(), key=lambda item: item[1])
        if most <= counts[owner] + 1:
            return None
        return next(each for each in self._listeners if each.owner == greediest)

    async def _stored(self, listener: _Listener, after: int) -> AsyncIterator[EventRow]:
        """Stored events after `after`, until the listener is over."""
        if listener.since is not None and after >= listener.since:
            return
        while not listener.is_over:
            found = await asyncio.to_thread(self._page, listener.wanted, after)
            assert all(event.sequence > after for event in found)
            for event in found:
                if listener.is_over:
                    return
                after = event.sequence
                yield event
            if len(found) < _PAGE:
                return

    async def _run(self) -> None:
        try:
            while self._listeners and not self._is_stopping():
                await asyncio.sleep(self._poll_seconds)
                watched = {each.wanted.job for each in self._listeners if each.wanted.job}
                seen = await asyncio.to_thread(self._poll, watched)
                self._distribute(seen)
        except Exception:
            # End the streams: the listeners reconnect and see the error, instead of waiting indefinitely.
            logger.exception("events cannot be read; the streams end")
        finally:
            for listener in self._listeners:
                listener.offer(None)

    def _poll(self, watched: set[str]) -> _Seen:
        number_events(self._database)
        with self._database.read() as connection:
            found = events.page(connection, EventFilter(), Seek(self._position, limit=_PAGE))
            progress = events.progress(connection, watched) if watched else {}
        return _Seen(found, progress)

    def _distribute(self, seen: _Seen) -> None:
        for event in seen.events:
            assert event.sequence > self._position, "an event appeared before one that was read"
            self._position = event.sequence
            for listener in self._listeners:
                if listener.wanted.covers(event):
                    listener.offer(event)
        for listener in self._listeners:
            job = listener.wanted.job or ""
            if job in seen.progress and seen.progress[job] != self._progress.get(job):
                listener.offer(Progress(job, seen.progress[job]))
        self._progress = seen.progress

    def _page(self, wanted: EventFilter, after: int) -> list[EventRow]:
        with self._database.read() as connection:
            return events.page(connection, wanted, Seek(after, limit=_PAGE))

    def _newest(self) -> int:
        number_events(self._database)
        with self._database.read() as connection:
            return events.newest(connection)
