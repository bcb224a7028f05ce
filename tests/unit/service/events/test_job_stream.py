"""The event stream of one job: complete, in order, and ended."""

import json
from dataclasses import dataclass

import httpx

from cmcl.contract.api.jobs import JobState
from tests.fakes.control_plane import ControlPlane

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


def test_a_job_that_does_not_exist_is_a_problem(plane: ControlPlane) -> None:
    response = _stream(plane, "job-0123456789ab")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
