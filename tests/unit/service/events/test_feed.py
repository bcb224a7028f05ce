"""The feed: pages, streams, and their listeners."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent
from sqlalchemy import Connection, event

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Progress
from service.core.errors import TooManyRequests
from service.database.queries import events
from service.database.queries.events import EventFilter
from service.database.queries.jobs import Report, RunningAttempt, store_progress
from service.database.rows import Event, EventRow
from service.events.feed import Feed, Item
from tests.fakes.control_plane import ControlPlane
from tests.fakes.database_outage import outage
from tests.fakes.served_app import served

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


WHOLE_LIFE = [
    "job.queued",
    "job.preparing",
    "job.prepared",
    "job.submitting",
    "job.running",
    "job.gating",
    "job.published",
]


@dataclass(frozen=True)
class ServerEvent:
    """One message of a stream."""

    event: str
    id: str
    data: str


def parse(text: str) -> list[ServerEvent]:
    """The messages of a stream that has ended; without comments."""
    blocks = [block for block in text.replace("\r\n", "\n").split("\n\n") if "data:" in block]
    return [_message(block) for block in blocks]


def kinds(text: str) -> list[str]:
    """The kinds of its events, without progress."""
    return [each.event for each in parse(text) if each.id]


def _message(block: str) -> ServerEvent:
    fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
    return ServerEvent(fields["event"], fields.get("id", ""), fields["data"])


def _stream(plane: ControlPlane, job: str, **options: object) -> httpx.Response:
    return plane.client.get(f"/v1/jobs/{job}/events", **options)


def test_the_stream_of_a_finished_job_has_all_its_events_and_ends(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.run_to_end(job)
    response = _stream(plane, job)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert "retry: 2000" in response.text
    messages = parse(response.text)
    assert [message.event for message in messages] == WHOLE_LIFE
    for message in messages:
        view = json.loads(message.data)
        assert (str(view["id"]), view["kind"], view["job"]) == (message.id, message.event, job)
    assert json.loads(messages[-1].data)["details"]["from"] == "gating"


def test_a_stream_has_no_events_of_another_job(plane: ControlPlane) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    plane.run_to_end(first)
    plane.run_to_end(second)
    for job in (first, second):
        messages = parse(_stream(plane, job).text)
        assert {json.loads(message.data)["job"] for message in messages} == {job}
        assert [message.event for message in messages] == WHOLE_LIFE


def test_it_resumes_after_the_last_event_seen(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.run_to_end(job)
    for seen, last in enumerate(parse(_stream(plane, job).text)[:-1]):
        by_header = _stream(plane, job, headers={"Last-Event-ID": last.id}, params={"after": 0})
        by_address = _stream(plane, job, params={"after": last.id})
        assert kinds(by_header.text) == kinds(by_address.text) == WHOLE_LIFE[seen + 1 :]


def test_a_client_that_has_seen_the_end_gets_204(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.client.post(f"/v1/jobs/{job}/cancel")
    plane.tick(2)
    last = parse(_stream(plane, job).text)[-1]
    assert last.event == "job.cancelled"
    response = _stream(plane, job, headers={"Last-Event-ID": last.id})
    assert (response.status_code, response.content) == (204, b"")


def test_a_position_that_does_not_exist_yet_ends_too(plane: ControlPlane) -> None:
    """After a backup was played back, positions that clients have seen are gone."""
    job = plane.post_dataset()
    plane.client.post(f"/v1/jobs/{job}/cancel")
    plane.tick(2)
    assert _stream(plane, job, params={"after": 10**9}).status_code == 204


def test_an_earlier_end_does_not_end_the_stream(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.launcher.refuses = True
    plane.tick_to(job, JobState.SUBMITTING)
    plane.clock.advance(601)
    plane.tick_to(job, JobState.FAILED)
    plane.launcher.refuses = False
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    plane.run_to_end(job)
    messages = kinds(_stream(plane, job).text)
    assert messages.index("job.failed") < messages.index("job.published") == len(messages) - 1


def test_a_foreign_position_is_refused_by_name(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    for given in ("abc", "-1", "1.5", "9" * 20, "9" * 400, "１"):
        response = _stream(plane, job, headers={"Last-Event-ID": given.encode()})
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "Last-Event-ID"
    for after in ("-1", "x", str(2**63)):
        response = _stream(plane, job, params={"after": after})
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "after"


STREAM = {"Accept": "text/event-stream"}


@contextmanager
def _listening(url: str, path: str, **headers: str) -> Iterator[Iterator[ServerSentEvent]]:
    with (
        httpx.Client(base_url=url, timeout=60) as client,
        client.stream("GET", path, headers={**STREAM, **headers}) as response,
    ):
        assert response.status_code == 200
        # The library makes something of blocks without data, too: of heartbeats, for example.
        yield (received for received in EventSource(response).iter_sse() if received.data)


def _report(plane: ControlPlane, job: str, updates: int) -> None:
    progress = Progress(
        phase="training", updates_done=updates, updates_total=9, at=datetime.now(UTC)
    )
    found = plane.job(job)
    attempt = RunningAttempt(job, found.attempt, found.model, found.revision)
    with plane.context.database.write() as connection:
        store_progress(connection, [Report(attempt, progress)], plane.clock())


def test_a_job_is_followed_with_its_progress_to_its_end(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    with served(plane.app) as url, _listening(url, f"/v1/jobs/{job}/events") as received:
        assert next(received).event == "job.queued"
        plane.tick_to(job, JobState.RUNNING)
        assert [next(received).event for _ in range(4)] == [
            "job.preparing",
            "job.prepared",
            "job.submitting",
            "job.running",
        ]
        for updates in (1, 2):
            _report(plane, job, updates)
            progress = next(received)
            assert (progress.event, json.loads(progress.data)["updates_done"]) == (
                "progress",
                updates,
            )
        last_event = progress.id
        plane.run_to_end(job)
        rest = [event for event in received if event.event != "progress"]
    assert last_event.isdigit(), "a client remembers the id of the event before"
    assert [event.event for event in rest] == ["job.gating", "job.published"]


@pytest.mark.parametrize("path", ["/v1/events", "/ui/stream"])
def test_a_stream_that_had_no_event_continues_where_it_began(
    plane: ControlPlane, path: str
) -> None:
    plane.post_dataset("earlier")
    with served(plane.app) as url:
        with httpx.stream("GET", f"{url}{path}", headers=STREAM) as response:
            first = dict(line.split(": ", 1) for line in islice(response.iter_lines(), 2))
        job = plane.post_dataset("between")
        with _listening(url, path, **{"Last-Event-ID": first["id"]}) as received:
            assert json.loads(next(received).data)["job"] == job


def test_a_stream_can_be_narrowed(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    path = "/v1/events?model=sounds&kind=job.queued"
    with served(plane.app) as url, _listening(url, path) as received:
        plane.post_dataset()
        other = plane.post_dataset(model="sounds")
        plane.tick(2)
        last = plane.post_dataset("two", model="sounds")
        assert [json.loads(next(received).data)["job"] for _ in range(2)] == [other, last]


def test_events_of_another_service_are_streamed_too(plane: ControlPlane) -> None:
    other = ControlPlane(plane.folder, plane.launcher, plane.clock)
    with served(plane.app) as url, _listening(url, "/v1/events") as received:
        job = other.post_dataset()
        assert json.loads(next(received).data)["job"] == job
    other.close()


@pytest.mark.parametrize("accept", ["text/event-stream", "text/html, text/event-stream;q=0.9"])
def test_a_client_that_accepts_a_stream_gets_one(plane: ControlPlane, accept: str) -> None:
    with (
        served(plane.app) as url,
        httpx.stream("GET", f"{url}/v1/events", headers={"Accept": accept}) as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert set(islice(response.iter_lines(), 2)) == {"id: 0", "retry: 2000"}


@contextmanager
def _service(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "CMCL_AUTH": "off",
        "CMCL_PORT": str(port),
        "CMCL_DATABASE_URL": f"sqlite:///{folder / 'cmcl.db'}",
        "CMCL_STORE_URI": (folder / "store").as_uri(),
    }
    root = Path(__file__).parents[4]
    command = [sys.executable, "-m", "service"]
    service = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE)
    try:
        yield service, f"http://127.0.0.1:{port}"
    finally:
        service.kill()
        service.wait()
        assert service.stderr is not None
        service.stderr.close()


def _wait_for(url: str) -> None:
    for _ in range(600):
        try:
            httpx.get(f"{url}/healthz")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the service did not start")


def test_a_listener_does_not_keep_a_service_from_ending(tmp_path: Path) -> None:
    with _service(tmp_path) as (service, url):
        _wait_for(url)
        headers = {"Accept": "text/event-stream"}
        with httpx.stream("GET", f"{url}/v1/events", headers=headers, timeout=30) as response:
            lines = response.iter_lines()
            assert set(islice(lines, 2)) == {"id: 0", "retry: 2000"}
            service.send_signal(signal.SIGTERM)
            # One that is cut off at the end of the time for it would raise.
            assert [line for line in lines if line] == []
            # The server passes the signal on to itself once everything is done.
            assert service.wait(60) in (0, -signal.SIGTERM)
        assert service.stderr is not None
        assert b"Traceback" not in service.stderr.read()


def _items(plane: ControlPlane, query: str = "") -> list[dict[str, object]]:
    response = plane.client.get(f"/v1/events?limit=200{query}")
    assert response.status_code == 200, response.text
    items: list[dict[str, object]] = response.json()["items"]
    return items


def test_events_can_be_narrowed(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    first, second = plane.post_dataset(), plane.post_dataset(model="sounds")
    plane.tick(2)
    of_model = _items(plane, "&model=sounds")
    assert {item["job"] for item in of_model} == {second}
    assert {item["job"] for item in _items(plane, f"&job={first}")} == {first}
    of_kind = _items(plane, "&kind=job.queued&kind=job.failed")
    assert [(item["kind"], item["job"]) for item in of_kind] == [
        ("job.queued", first),
        ("job.queued", second),
    ]
    assert _items(plane, "&model=nowhere") == []
