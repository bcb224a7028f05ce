"""Events and watching: with broken streams, restarts, and without streams."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cmcl import Client, CmclError
from cmcl.client import Event, Job, Unreachable, WaitTimeout
from cmcl.client.concurrency import Clock
from tests.fakes.control_plane import ControlPlane
from tests.fakes.responses import AT, body
from tests.fakes.served_app import served
from tests.unit.client.command_line import Cmcl
from tests.unit.client.either import KINDS, connected
from tests.unit.client.rest_server import Answer, Asked, RestServer

STREAM = {"Content-Type": "text/event-stream"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def job(state: str, **more: Any) -> dict[str, Any]:
    return body(Job, id="job-1", state=state, **more)


def event(number: int, kind: str, **details: Any) -> str:
    fields = body(Event, id=number, kind=kind, job="job-1", details=details)
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(fields)}\n\n"


def progress(updates: int) -> str:
    fields = {"phase": "training", "updates_done": updates, "updates_total": 9, "at": AT}
    return f"event: progress\ndata: {json.dumps(fields)}\n\n"


def preparation(rows: int) -> str:
    fields = {"request": 0, "phase": "encoding", "rows_done": rows, "rows_total": 9, "at": AT}
    return f"event: preparation\ndata: {json.dumps(fields)}\n\n"


class Streams:
    """Prepared streams in order, and a job whose state advances with each request."""

    def __init__(self, streams: list[Answer | None], states: list[str]) -> None:
        self._streams = iter(streams)
        self._states = iter(states)
        self._state = ""

    def __call__(self, asked: Asked) -> Answer | None:
        if asked.path.endswith("/events"):
            return next(self._streams, (204, ""))
        self._state = next(self._states, self._state)
        return 200, job(self._state)


def stream(*blocks: str) -> Answer:
    return 200, "retry: 1\n\n: ping\n\n" + "".join(blocks), STREAM


def test_a_broken_stream_resumes_after_the_last_event(client: Client, server: RestServer) -> None:
    server.answer = Streams(
        [
            stream(event(3, "job.queued"), event(7, "job.running"), progress(1), progress(2)),
            None,
            (503, {}),
            stream(": heartbeat\n\n"),
            stream(event(9, "job.published")),
        ],
        [],
    )
    received = list(client.events("job-1"))
    assert [(each.id, each.kind) for each in received] == [
        (3, "job.queued"),
        (7, "job.running"),
        (None, "progress"),
        (None, "progress"),
        (9, "job.published"),
    ]
    assert [each.details.get("updates_done") for each in received[2:4]] == [1, 2]
    seen = [asked.headers.get("last-event-id") for asked in server.asked]
    assert seen == [None, "7", "7", "7", "7", "9"]


def test_events_of_the_version_follow_the_end_of_its_job(
    client: Client, server: RestServer
) -> None:
    streams = [stream(event(1, "job.published")), stream(event(2, "version.published"))]
    server.answer = Streams([*streams, stream()], [])
    kinds = [each.kind for each in client.events("job-1")]
    assert kinds == ["job.published", "version.published"]
    assert len(server.asked) == 4


def test_the_end_of_an_earlier_try_does_not_end_the_feed(
    client: Client, server: RestServer
) -> None:
    """A retried job has a final event in the middle of its events."""
    history = event(1, "job.failed") + event(2, "job.queued")
    server.answer = Streams([stream(history), stream(event(3, "job.published"))], [])
    kinds = [each.kind for each in client.events("job-1")]
    assert kinds == ["job.failed", "job.queued", "job.published"]


def test_following_fails_after_the_outage_timeout(client: Client, server: RestServer) -> None:
    for away, error in ((None, Unreachable), ((503, {"detail": "not now"}), CmclError)):
        server.always(away)
        with pytest.raises(error):
            list(client.events("job-1", outage_timeout=0.02))


@pytest.mark.parametrize("away", [None, (502, "<html>no backend"), (503, {"detail": "not now"})])
def test_watching_survives_an_outage_of_the_service(
    client: Client, server: RestServer, away: Answer | None
) -> None:
    """The service restarts, or a proxy responds for it, for longer than one request is retried."""
    left = 25

    def answer(asked: Asked) -> Answer | None:
        nonlocal left
        left -= 1
        if left == 24 or left < 0:
            return 200, job("running" if left == 24 else "published")
        return away

    server.answer = answer
    assert client.watch("job-1", timeout=30).state == "published"


def test_a_rejection_is_not_retried(client: Client, server: RestServer) -> None:
    server.always((403, {"detail": "the scope 'read' is needed"}))
    with pytest.raises(CmclError, match="scope 'read'"):
        list(client.events("job-1"))
    assert len(server.asked) == 1


@pytest.mark.parametrize("data", ["[1]", "5", '{"id": "x"}', '"text"'])
def test_invalid_events_are_skipped(client: Client, server: RestServer, data: str) -> None:
    odd = f"id: 4\nevent: new.kind\ndata: {data}\n\n"
    server.answer = Streams([stream(odd, event(5, "job.published"))], [])
    assert [each.id for each in client.events("job-1")] == [5]


def test_without_streams_the_job_is_polled(client: Client, server: RestServer) -> None:
    states = ["queued", "running", "running", "published"]
    server.answer = Streams([(404, {"title": "Not found"})], states)
    assert [each.kind for each in client.events("job-1")] == [
        "job.queued",
        "job.running",
        "job.published",
    ]


def test_watching_reports_every_change_once_and_ends_with_the_job(
    client: Client, server: RestServer
) -> None:
    blocks = [event(1, "job.queued"), event(2, "job.running"), progress(1), progress(2)]
    states = ["queued", "queued", "running", "published"]
    server.answer = Streams([stream(*blocks, event(3, "job.published"))], states)
    seen: list[Job] = []
    ended = client.watch("job-1", seen.append, timeout=60)
    assert ended.state == "published"
    assert [each.state for each in seen] == ["queued", "running", "running", "running", "published"]
    updates = [each.progress.updates_done if each.progress else None for each in seen]
    assert updates == [None, None, 1, 2, None]


@pytest.mark.parametrize("body", [None, ": ping\n\n", progress(1)])
def test_watching_ends_at_its_timeout(client: Client, server: RestServer, body: str | None) -> None:
    def answer(asked: Asked) -> Answer | None:
        if asked.path.endswith("/events"):
            return None if body is None else (200, body, STREAM)
        return 200, job("running")

    server.answer = answer
    with pytest.raises(WaitTimeout, match=r"job job-1 did not end within 0\.05 seconds"):
        client.watch("job-1", timeout=0.05, poll_seconds=0.001)


def test_no_stream_is_opened_for_an_ended_job(client: Client, server: RestServer) -> None:
    server.always((200, job("failed", reason="training_failed")))
    assert client.watch("job-1").reason == "training_failed"
    assert len(server.asked) == 1


@pytest.fixture
def url(plane: ControlPlane) -> Iterator[str]:
    with served(plane.app) as url:
        yield url


def test_all_events_are_followed_from_a_given_id(plane: ControlPlane, url: str) -> None:
    plane.create_model()
    plane.run_to_end(plane.post_dataset())
    with connected("blocking", url) as client:
        past = list(client.all_events())
        following = client.follow_events(after=past[2].id)
        assert [next(following) for _ in past[3:]] == past[3:]
        del following


def test_progress_of_preparation_is_followed_without_reading_the_job(
    client: Client, server: RestServer
) -> None:
    blocks = (event(1, "job.preparing"), preparation(3), preparation(6), event(2, "job.published"))
    server.answer = Streams([stream(*blocks)], ["queued", "preparing", "published"])
    seen: list[Job] = []
    assert client.watch("job-1", seen.append).state == "published"
    rows = [now.preparation.rows_done for now in seen if now.preparation]
    assert rows == [3, 6]
    assert all(now.progress is None for now in seen)
    assert len([asked for asked in server.asked if not asked.path.endswith("/events")]) == 3


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_command_waits_for_jobs_that_take_longer_than_hours(
    server: RestServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: list[str],
) -> None:
    monkeypatch.setenv("CMCL_URL", server.url)
    hours = itertools.count(0.0, 3600.0)
    monkeypatch.setattr(Clock, "now", lambda _: next(hours))
    states = iter(["running"] * 5)
    server.answer = lambda asked: (
        (404, {})
        if asked.path.endswith("/events")
        else (200, job(next(states, "published"), version=1))
    )
    assert "published" in Cmcl(capsys)("job", "watch", "job-0123456789ab", *form)
