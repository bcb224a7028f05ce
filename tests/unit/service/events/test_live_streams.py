"""Streams while things happen, over real sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Progress
from service.database.queries.jobs import Report, RunningAttempt, store_progress
from tests.fakes.control_plane import ControlPlane
from tests.fakes.served_app import served
from tests.fakes.trainer import FIGURES, report_progress

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


def test_a_late_listener_gets_the_newest_progress(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    _report(plane, job, 7)
    with served(plane.app) as url, _listening(url, f"/v1/jobs/{job}/events") as received:
        progress = next(event for event in received if event.event == "progress")
    assert json.loads(progress.data)["updates_done"] == 7


def test_all_progress_of_an_attempt_is_streamed(plane: ControlPlane) -> None:
    """In the stream as in the job itself."""
    job = plane.post_dataset()
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    written = report_progress(plane.store, job, attempt, "training", 3, FIGURES)
    plane.tick()
    with served(plane.app) as url, _listening(url, f"/v1/jobs/{job}/events") as received:
        progress = next(event for event in received if event.event == "progress")
    assert json.loads(progress.data) == written.model_dump(mode="json")
    assert plane.client.get(f"/v1/jobs/{job}").json()["progress"] == json.loads(progress.data)
    # It has its ranks.
    assert [name for name, value in json.loads(progress.data).items() if value is None] == ["note"]


def test_a_stream_has_all_events_from_now_on(plane: ControlPlane) -> None:
    plane.post_dataset("earlier")
    with served(plane.app) as url, _listening(url, "/v1/events") as received:
        job = plane.post_dataset("later")
        assert json.loads(next(received).data)["job"] == job


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


def test_a_stream_can_start_at_the_first_event(plane: ControlPlane) -> None:
    job = plane.post_dataset("earlier")
    with served(plane.app) as url, _listening(url, "/v1/events?after=0") as received:
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


def test_a_restarted_service_resumes_at_the_clients_position(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    with served(plane.app) as url, _listening(url, f"/v1/jobs/{job}/events") as received:
        seen = [next(received) for _ in range(2)]
    again = ControlPlane(plane.folder, plane.launcher, plane.clock)
    with (
        served(again.app) as url,
        _listening(url, f"/v1/jobs/{job}/events", **{"Last-Event-ID": seen[-1].id}) as received,
    ):
        seen += [next(received) for _ in range(2)]
        again.run_to_end(job)
        seen += [event for event in received if event.event != "progress"]
    assert [event.event for event in seen] == [
        "job.queued",
        "job.preparing",
        "job.prepared",
        "job.submitting",
        "job.running",
        "job.gating",
        "job.published",
    ]
    again.close()


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
