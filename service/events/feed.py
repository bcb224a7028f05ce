"""Events as they happen, for everybody who listens to this process.

One look at the database serves all listeners: every quarter of a second while there are any, three
short queries (is anything to be numbered, what is new, how far are the jobs that are watched), be
there one listener or a thousand. What is found is handed out in memory. Only a listener that begins
asks the database by itself, for what it has missed.

A listener that does not keep up is let go of: it comes back and goes on where it was, which costs
less than to remember everything for it. The same happens to the oldest listener of the owner that has
most of them, where another owner has fewer and there is no room: so one owner alone may have all.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.database.engine import Database
from service.database.queries import events
from service.database.queries.events import EventFilter
from service.database.rows import EventRecord
from service.errors import TooManyRequests
from service.events.kinds import FINAL

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_PAGE = 200
_MOST_LISTENERS = 1000
_RETRY_AFTER_SECONDS = 10
# What one listener may be behind before it is let go of.
_MOST_WAITING = 256
# A stream ends after so long, and its listener comes back: so a key that was revoked is noticed,
# and listeners spread over the services anew.
_LONGEST_STREAM_SECONDS = 900.0


@dataclass(frozen=True)
class Progress:
    """How far a job's present attempt is: not an event, only the newest one counts."""

    job: str
    values: Mapping[str, object]


Item = EventRecord | Progress


@dataclass(frozen=True)
class _Seen:
    """What one look found."""

    events: list[EventRecord]
    progress: dict[str, dict[str, object]]


def number_events(database: Database) -> None:
    """Give every event that is committed its place; writes only if there is one without."""
    with database.read() as connection:
        if not events.has_unnumbered(connection):
            return
    numbered = events.MOST_AT_ONCE
    while numbered == events.MOST_AT_ONCE:
        with database.write() as connection:
            numbered = events.number(connection)


class _Listener:
    """One listener's queue. None in it, or an overflow, is its end; `until` at the latest."""

    def __init__(self, wanted: EventFilter, owner: str | None, until: float) -> None:
        self.wanted = wanted
        self.owner = owner
        # Every event behind this one is handed out to it; None: not known.
        self.since: int | None = None
        # By the clock of the loop.
        self._until = until
        self._is_ended = False
        self._items: asyncio.Queue[Item | None] = asyncio.Queue(_MOST_WAITING)
        self._is_behind = False

    def offer(self, item: Item | None) -> None:
        """Without waiting: one that is slow must not hold up the others."""
        self._is_ended = self._is_ended or item is None
        try:
            self._items.put_nowait(item)
        except asyncio.QueueFull:
            self._is_behind = True

    @property
    def is_over(self) -> bool:
        """Whether nothing more may be read for it, be it stored: it was ended, or its time is over."""
        return self._is_ended or asyncio.get_running_loop().time() >= self._until

    async def next(self) -> Item | None:
        """The next item; None when it is over: fallen behind, ended, or later than `until`."""
        if self._is_behind:
            return None
        seconds = self._until - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(self._items.get(), max(seconds, 0.0))
        except TimeoutError:
            return None


class Feed:
    """The listeners of one process, and the task that looks for them while there are any."""

    def __init__(
        self,
        database: Database,
        look_seconds: float = _LOOK_SECONDS,
        longest_seconds: float = _LONGEST_STREAM_SECONDS,
        most_listeners: int = _MOST_LISTENERS,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database = database
        self._look_seconds = look_seconds
        self._longest_seconds = longest_seconds
        self._most_listeners = most_listeners
        # Asked at every look: a server that waits for its streams must not wait long.
        self._is_stopping = is_stopping
        # In the order in which they came.
        self._listeners: dict[_Listener, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._next_newest: asyncio.Task[int] | None = None
        self._position = 0
        self._progress: dict[str, dict[str, object]] = {}

    @property
    def is_looking(self) -> bool:
        """Whether the database is looked at again and again."""
        return self._task is not None and not self._task.done()

    def check_room(self, owner: str | None) -> None:
        """Raises TooManyRequests where a listener of the owner (None: the operator) finds no room."""
        if len(self._listeners) >= self._most_listeners and self._excess(owner) is None:
            message = f"{self._most_listeners} listen already; ask for pages, or try again later"
            raise TooManyRequests(message, _RETRY_AFTER_SECONDS)

    async def start(self, after: int | None) -> int:
        """Where a stream begins: behind `after`, or else behind what is there now.

        A position beyond the newest one comes from a database that has lost events (a backup was
        played back): waiting for it to come again would skip all events until then.
        """
        newest = await self._newest_of_now()
        return newest if after is None else min(after, newest)

    async def _newest_of_now(self) -> int:
        """Read once for all who ask before the reading begins: a thousand streams may start together."""
        if self._next_newest is None or self._next_newest.done():
            self._next_newest = asyncio.create_task(self._read_newest())
        return await asyncio.shield(self._next_newest)

    async def _read_newest(self) -> int:
        async with self._reading:
            # Later callers must see what is committed from now on.
            self._next_newest = None
            return await asyncio.to_thread(self._newest)

    async def follow(
        self, wanted: EventFilter, after: int, owner: str | None
    ) -> AsyncGenerator[Item, None]:
        """Events behind `after`: those that are there, then those that come."""
        async with self._listen(wanted, owner) as listener:
            async for event in self._stored(listener, after):
                after = event.sequence
                yield event
            if listener.is_over:
                # Stored events may be left, which those in the queue must not overtake.
                return
            while (item := await listener.next()) is not None:
                if isinstance(item, EventRecord) and item.sequence > after:
                    after = item.sequence
                    yield item

    async def follow_job(
        self, job: str, after: int, owner: str | None
    ) -> AsyncGenerator[Item, None]:
        """A job's events and progress, to the event that ends it for now."""
        wanted = EventFilter(job=job)
        last: str | None = None
        async with self._listen(wanted, owner) as listener:
            async for event in self._stored(listener, after):
                after, last = event.sequence, event.kind
                yield event
            if listener.is_over:
                return
            while last not in FINAL:
                item = await listener.next()
                if item is None:
                    return
                if isinstance(item, EventRecord):
                    if item.sequence <= after:
                        continue
                    after, last = item.sequence, item.kind
                yield item

    @asynccontextmanager
    async def _listen(self, wanted: EventFilter, owner: str | None) -> AsyncIterator[_Listener]:
        """Listen from now on; what is read from the database after this leaves no gap."""
        until = asyncio.get_running_loop().time() + self._longest_seconds
        listener = _Listener(wanted, owner, until)
        if self.is_looking:
            listener.since = self._position
        self._add(listener)
        try:
            async with self._starting:
                if not self.is_looking:
                    self._position = await asyncio.to_thread(self._newest)
                    self._progress = {}
                    self._task = asyncio.create_task(self._run())
            if wanted.job in self._progress:
                listener.offer(Progress(wanted.job, self._progress[wanted.job]))
            yield listener
        finally:
            self._listeners.pop(listener, None)

    def _add(self, listener: _Listener) -> None:
        """In the place of another one where there is no room; without one it ends at once.

        Others may have come since `check_room`: a stream begins some turns of the loop later.
        """
        if len(self._listeners) >= self._most_listeners:
            excess = self._excess(listener.owner)
            if excess is None:
                listener.offer(None)
                return
            del self._listeners[excess]
            excess.offer(None)
        self._listeners[listener] = None

    def _excess(self, owner: str | None) -> _Listener | None:
        """The oldest listener of the owner that has most, if that are at least two more than this one has."""
        counts = Counter(each.owner for each in self._listeners)
        greediest, most = max(counts.items(), key=lambda item: item[1])
        if most <= counts[owner] + 1:
            return None
        return next(each for each in self._listeners if each.owner == greediest)

    async def _stored(self, listener: _Listener, after: int) -> AsyncIterator[EventRecord]:
        """What is in the database behind `after`, until the listener is over."""
        if listener.since is not None and after >= listener.since:
            return
        while not listener.is_over:
            found = await asyncio.to_thread(self._page, listener.wanted, after)
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
                await asyncio.sleep(self._look_seconds)
                watched = {each.wanted.job for each in self._listeners if each.wanted.job}
                seen = await asyncio.to_thread(self._look, watched)
                self._hand_out(seen)
        except Exception:
            # The listeners come back and are told then what is wrong; else they would wait for ever.
            logger.exception("events cannot be read; the streams end")
        finally:
            for listener in self._listeners:
                listener.offer(None)

    def _look(self, watched: set[str]) -> _Seen:
        number_events(self._database)
        with self._database.read() as connection:
            found = events.page(connection, EventFilter(), self._position, _PAGE)
            progress = events.progress(connection, watched) if watched else {}
        return _Seen(found, progress)

    def _hand_out(self, seen: _Seen) -> None:
        for event in seen.events:
            self._position = event.sequence
            for listener in self._listeners:
                if listener.wanted.covers(event):
                    listener.offer(event)
        for listener in self._listeners:
            job = listener.wanted.job or ""
            if job in seen.progress and seen.progress[job] != self._progress.get(job):
                listener.offer(Progress(job, seen.progress[job]))
        self._progress = seen.progress

    def _page(self, wanted: EventFilter, after: int) -> list[EventRecord]:
        with self._database.read() as connection:
            return events.page(connection, wanted, after, _PAGE)

    def _newest(self) -> int:
        number_events(self._database)
        with self._database.read() as connection:
            return events.newest(connection)
