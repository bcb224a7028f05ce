"""Many listeners share one poll: its cost, and the end of listeners that do not keep up."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager

import pytest
from sqlalchemy import Connection, event

from service.core.errors import TooManyRequests
from service.database.queries import events
from service.database.queries.events import EventFilter
from service.database.rows import Event, EventRow
from service.events.feed import Feed, Item
from tests.fakes.control_plane import ControlPlane
from tests.fakes.database_outage import outage

EVERYTHING = EventFilter()


@contextmanager
def _counted(plane: ControlPlane) -> Iterator[list[str]]:
    """Statements that reach the database."""
    statements: list[str] = []

    def note(_connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    engine = plane.context.database.engine
    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


def _tell(plane: ControlPlane, number: int = 1) -> None:
    with plane.context.database.write() as connection:
        for _ in range(number):
            emitted = Event(kind="model.gate", owner="default", model="scenes")
            events.emit(connection, emitted, plane.clock())


async def _hear(items: AsyncIterator[Item], heard: list[Item]) -> None:
    """Append item by item, so that others see its progress."""
    async for item in items:
        heard += [item]


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.01)


async def _until_heard(heard: list[Item], number: int) -> None:
    await _until(lambda: len(heard) == number)


def test_streams_that_start_together_read_the_database_together(plane: ControlPlane) -> None:
    plane.post_dataset()

    async def start() -> None:
        feed = Feed(plane.context.database, poll_seconds=60)
        heard: list[Item] = []

        async def listen() -> None:
            async with aclosing(feed.follow(EVERYTHING, await feed.start(None), None)) as items:
                await _hear(items, heard)

        first = asyncio.create_task(listen())
        await _until(lambda: len(feed._listeners) == 1 and feed.is_polling)
        with _counted(plane) as statements:
            others = [asyncio.create_task(listen()) for _ in range(100)]
            await _until(lambda: len(feed._listeners) == 101)
            await asyncio.sleep(0.1)
        for task in (first, *others):
            task.cancel()
        await asyncio.gather(first, *others, return_exceptions=True)
        # The first of them asks for itself, the others together; none reads a page of events.
        assert len(statements) <= 3 * 4

    asyncio.run(start())


def test_an_event_between_the_start_of_a_stream_and_its_first_poll_is_sent(
    plane: ControlPlane,
) -> None:
    async def start() -> None:
        feed = Feed(plane.context.database, poll_seconds=0.01)
        heard: list[Item] = []
        _tell(plane)

        async def listen(after: int) -> None:
            async with aclosing(feed.follow(EVERYTHING, after, None)) as items:
                await _hear(items, heard)

        first = asyncio.create_task(listen(await feed.start(None)))
        await _until(lambda: feed.is_polling)
        for _ in range(3):
            after = await feed.start(None)
            heard.clear()
            _tell(plane)
            # From now on only the database has it for the second listener.
            await _until_heard(heard, 1)
            second = asyncio.create_task(listen(after))
            await _until_heard(heard, 2)
            assert {each.sequence for each in heard if isinstance(each, EventRow)} == {after + 1}
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    asyncio.run(start())


def test_a_hundred_listeners_cost_what_one_does(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick(5)

    async def cost(listeners: int) -> float:
        """Statements per poll, while there are no events for the listeners."""
        feed = Feed(plane.context.database, poll_seconds=0.01)
        heard: list[Item] = []

        async def listen() -> None:
            async with aclosing(feed.follow_job(job, 0, None)) as items:
                await _hear(items, heard)

        tasks = [asyncio.create_task(listen()) for _ in range(listeners)]
        await _until(lambda: len(heard) == 5 * listeners)
        with _counted(plane) as statements:
            await _until(lambda: len(statements) >= 40)
        looks = sum("position IS NULL" in statement for statement in statements)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(statements) / looks

    one, hundred = asyncio.run(cost(1)), asyncio.run(cost(100))
    assert one == pytest.approx(hundred, rel=0.1)
    assert hundred < 6


def test_without_listeners_the_feed_does_not_poll(plane: ControlPlane) -> None:
    async def listen_and_leave() -> list[str]:
        feed = Feed(plane.context.database, poll_seconds=0.01)
        await asyncio.to_thread(_tell, plane)
        async with aclosing(feed.follow(EVERYTHING, 0, None)) as items:
            await anext(items)
        looking = feed._task
        assert looking is not None
        await _until(looking.done)
        with _counted(plane) as statements:
            await asyncio.sleep(0.1)
        return statements

    assert asyncio.run(listen_and_leave()) == []


def test_nothing_is_lost_between_what_was_and_what_comes(plane: ControlPlane) -> None:
    """Events that are emitted at the very moment at which a stream starts."""

    async def heard_by_each() -> list[list[int]]:
        feed = Feed(plane.context.database, poll_seconds=0.01)

        async def listen() -> list[int]:
            positions: list[int] = []
            async with aclosing(feed.follow(EVERYTHING, 0, None)) as items:
                async for item in items:
                    assert isinstance(item, EventRow)
                    positions.append(item.sequence)
                    if len(positions) == 60:
                        break
            return positions

        tasks = []
        for _ in range(20):
            tasks.append(asyncio.create_task(listen()))
            await asyncio.to_thread(_tell, plane, 3)
        async with asyncio.timeout(60):
            return await asyncio.gather(*tasks)

    for positions in asyncio.run(heard_by_each()):
        assert positions == list(range(1, 61))


def test_a_listener_that_falls_behind_is_dropped(plane: ControlPlane) -> None:
    async def listen() -> tuple[int, int]:
        feed = Feed(plane.context.database, poll_seconds=0.01)
        slow, quick = feed.follow(EVERYTHING, 0, None), feed.follow(EVERYTHING, 0, None)
        heard: list[Item] = []

        await asyncio.to_thread(_tell, plane)
        await anext(slow)
        task = asyncio.create_task(_hear(quick, heard))
        await _until_heard(heard, 1)
        for last in range(101, 602, 100):
            # Fewer than may wait for a listener, so that this one keeps up on the slowest machine.
            await asyncio.to_thread(_tell, plane, 100)
            await _until_heard(heard, last)
        rest = [item async for item in slow]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return len(rest), len(heard)

    behind, all_of_them = asyncio.run(listen())
    assert behind < 600
    assert all_of_them == 601


def test_streams_end_where_the_database_fails(plane: ControlPlane) -> None:
    async def listen() -> list[Item]:
        feed = Feed(plane.context.database, poll_seconds=0.01)
        items = feed.follow(EVERYTHING, 0, None)
        await asyncio.to_thread(_tell, plane)
        heard = [await anext(items)]
        with outage(plane.context.database):
            async with asyncio.timeout(60):
                return heard + [item async for item in items]

    assert len(asyncio.run(listen())) == 1


def test_a_stream_has_an_end(plane: ControlPlane) -> None:
    async def listen() -> list[Item]:
        feed = Feed(plane.context.database, longest_seconds=0.1)
        async with asyncio.timeout(60):
            return [item async for item in feed.follow(EVERYTHING, 0, None)]

    assert asyncio.run(listen()) == []


def test_more_listeners_than_there_is_room_for_are_refused(plane: ControlPlane) -> None:
    async def listen() -> None:
        feed = Feed(plane.context.database, most_listeners=2)
        streams = [feed.follow(EVERYTHING, 0, None) for _ in range(2)]
        await asyncio.to_thread(_tell, plane)
        for stream in streams:
            feed.check_room(None)
            await anext(stream)
        with pytest.raises(TooManyRequests, match="all 2 streams are in use"):
            feed.check_room(None)
        for stream in streams:
            await stream.aclose()
        feed.check_room(None)

    asyncio.run(listen())


def test_one_owner_may_have_all_streams_and_yields_them_to_others(plane: ControlPlane) -> None:
    async def listen() -> None:
        feed = Feed(plane.context.database, poll_seconds=0.01, most_listeners=4)
        await asyncio.to_thread(_tell, plane)

        async def begin(owner: str) -> AsyncGenerator[Item, None]:
            feed.check_room(owner)
            stream = feed.follow(EVERYTHING, 0, owner)
            await anext(stream)
            return stream

        red = [await begin("red") for _ in range(4)]
        with pytest.raises(TooManyRequests):
            feed.check_room("red")
        blue = [await begin("blue"), await begin("blue")]
        async with asyncio.timeout(60):
            # The oldest two of red have ended; all owners have the same number now.
            assert [[item async for item in stream] for stream in red[:2]] == [[], []]
        for owner in ("red", "blue"):
            with pytest.raises(TooManyRequests):
                feed.check_room(owner)
        green = await begin("green")
        heard: list[Item] = []
        task = asyncio.create_task(_hear(green, heard))
        await asyncio.to_thread(_tell, plane)
        await _until_heard(heard, 1)
        task.cancel()
        for stream in (*red[2:], *blue):
            await stream.aclose()

    asyncio.run(listen())


def test_a_stream_that_finds_no_room_when_it_begins_ends_at_once(plane: ControlPlane) -> None:
    async def listen() -> list[Item]:
        feed = Feed(plane.context.database, poll_seconds=0.01, most_listeners=1)
        await asyncio.to_thread(_tell, plane)
        feed.check_room("red")
        first, second = (feed.follow(EVERYTHING, 0, "red") for _ in range(2))
        await anext(first)
        async with asyncio.timeout(60):
            heard = [item async for item in second]
        await first.aclose()
        return heard

    assert asyncio.run(listen()) == []


def _follow(feed: Feed, job: str | None, owner: str) -> AsyncGenerator[Item, None]:
    """Follow a job's stream, or the stream of all events."""
    if job is None:
        return feed.follow(EVERYTHING, 0, owner)
    return feed.follow_job(job, 0, owner)


@pytest.mark.parametrize("of_a_job", [True, False])
def test_a_displaced_stream_stops_reading_stored_events(
    plane: ControlPlane, of_a_job: bool
) -> None:
    job = plane.post_dataset()
    plane.tick(3)

    async def listen() -> list[Item]:
        feed = Feed(plane.context.database, poll_seconds=0.01, most_listeners=2)
        streams = [
            _follow(feed, job if of_a_job else None, owner) for owner in ("red", "red", "blue")
        ]
        async with asyncio.timeout(60):
            for stream in streams:
                await anext(stream)
            rest = [item async for item in streams[0]]
        for stream in streams[1:]:
            await stream.aclose()
        return rest

    assert asyncio.run(listen()) == []


@pytest.mark.parametrize("of_a_job", [True, False])
def test_an_expired_stream_stops_reading_stored_events(plane: ControlPlane, of_a_job: bool) -> None:
    job = plane.post_dataset()
    plane.tick(3)

    async def listen() -> list[Item]:
        feed = Feed(plane.context.database, longest_seconds=1)
        stream = _follow(feed, job if of_a_job else None, "red")
        async with asyncio.timeout(60):
            await anext(stream)
            await asyncio.sleep(1)
            return [item async for item in stream]

    assert asyncio.run(listen()) == []
