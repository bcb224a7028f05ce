"""Pages of jobs, and what people do to jobs and open datasets."""

import html
import re
from typing import Any, get_args

import httpx
import pytest
from sqlalchemy import update

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.pictures import duration
from service.database.queries.attempts import AttemptOutcome
from service.database.tables import attempts, events, jobs
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import report_progress, train
from tests.unit.service.page.browser import Browser, text_of


@pytest.fixture
def person(plane: ControlPlane) -> Browser:
    """A browser at a control plane without keys, with one model."""
    return Browser(plane)


def outcome_shown(person: Browser, job: str) -> str:
    """The outcome of the first attempt on the page of its job."""
    answer = person.get(f"/ui/jobs/{job}")
    assert answer.status_code == 200, answer.text
    found = re.search(r'id="attempt-1".*?<td>(.*?)</td>', answer.text, re.DOTALL)
    assert found is not None
    return text_of(found[1])


def test_the_history_of_a_job_has_the_words_of_its_states(
    plane: ControlPlane, person: Browser
) -> None:
    job = plane.post_dataset()
    kinds = dict(
        re.findall(r'<option value="([^"]*)"[^>]*>([^<]*)<', person.get("/ui/events").text)
    )
    for state in JobState:
        with plane.context.database.write() as connection:
            connection.execute(update(jobs).values(state=state))
            connection.execute(update(events).values(kind=f"job.{state}"))
        heading = person.get(f"/ui/jobs/{job}?fragment=live_heading").text
        word = re.search(r'class="state [^>]*>([^<]*)<', heading)
        assert word is not None, state
        history = text_of(person.get(f"/ui/jobs/{job}?fragment=live_events").text)
        assert f"job {word[1]}" in history
        assert kinds[f"job.{state}"] == f"job {word[1]}"


def test_every_outcome_of_an_attempt_is_shown(plane: ControlPlane, person: Browser) -> None:
    job = plane.post_dataset()
    plane.run_to_end(job)
    for outcome in get_args(AttemptOutcome):
        with plane.context.database.write() as connection:
            connection.execute(update(attempts).values(outcome=outcome))
        shown = {"candidate": "wrote a candidate"}.get(outcome, outcome)
        assert outcome_shown(person, job) == shown


def test_the_page_of_a_job_says_where_its_time_went(plane: ControlPlane, person: Browser) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    figures: Any = {"seconds": {"reading": 2.0, "training": 1.5}, "at": plane.clock()}
    report_progress(plane.store, job, 1, "training", figures=figures)
    plane.tick()
    part = person.get(f"/ui/jobs/{job}?fragment=live_time").text
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th><td>([^<]*)</td>', part)
    listed = plane.client.get(f"/v1/jobs/{job}/phases").json()["phases"]
    assert rows == [
        (each["phase"], duration(each["seconds"]) + (" so far" if each["running"] else ""))
        for each in listed
    ]
    assert dict(rows)["training"].endswith(" so far")
    # A part of an open page that changes by itself.
    assert "data-every" in part


HOSTILE = "<script>alert(1)</script> \"'> \N{RIGHT-TO-LEFT OVERRIDE}abc \N{PILE OF POO} {{ 7 * 7 }}"


def _held(plane: ControlPlane) -> str:
    plane.client.put("/v1/models/scenes/gate", json={"manual_approval": True})
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.HELD)
    return job


def seen_in(page: httpx.Response) -> str:
    """The revision in the form of a confirmation page."""
    found = re.search(r'name="seen" value="(\d+)"', page.text)
    assert found is not None, page.text
    return found[1]


def fail(plane: ControlPlane, **posted: Any) -> str:
    """A job whose dataset cannot be read."""
    plane.shards.mkdir(exist_ok=True)
    broken = plane.shards / "broken.parquet"
    broken.write_bytes(b"not Parquet")
    job = plane.post_dataset(shards=[{"uri": broken.resolve().as_uri()}], **posted)
    plane.tick_to(job, JobState.FAILED)
    return job


def offered(person: Browser, job: str) -> list[str]:
    """What the page of a job leads to."""
    page = person.get(f"/ui/jobs/{job}?fragment=live_actions").text
    return re.findall(r'href="[./]*([^"?]*)', page)


def test_a_failed_job_is_posted_again_where_a_retry_would_fail_again(
    plane: ControlPlane, person: Browser
) -> None:
    job = fail(plane)
    for reason in FailureReason:
        with plane.context.database.write() as connection:
            connection.execute(update(jobs).values(reason=reason, kind="learn"))
        is_lasting = reason in ("invalid_dataset", "encoder_mismatch", "training_failed")
        link = "models/scenes/post" if is_lasting else f"jobs/{job}/retry"
        assert offered(person, job) == [link], reason
        command = f"cmcl job retry {job}" in person.get(f"/ui/jobs/{job}").text
        assert command is not is_lasting, reason
        # It has no rows that could be corrected.
        with plane.context.database.write() as connection:
            connection.execute(update(jobs).values(kind="unlearn"))
        assert offered(person, job) == [f"jobs/{job}/retry"], reason


@pytest.mark.parametrize("path", ["jobs/{job}", "datasets/{dataset}"])
def test_a_dataset_is_posted_again_with_the_values_that_it_had(
    plane: ControlPlane, person: Browser, path: str
) -> None:
    job = fail(
        plane,
        name="bells",
        pair={"first": "text", "second": "audio"},
        max_bad_share=0.07,
        evaluation_share=0.25,
    )
    address = path.format(job=job, dataset=plane.dataset_of(job).id)
    found = re.search(r'href="[./]*([^"]*post\?again[^"]*)"', person.get(f"/ui/{address}").text)
    assert found is not None
    form = person.get(f"/ui/{found[1]}").text
    values = dict(re.findall(r'<input id="([^"]*)"[^>]* value="([^"]+)"', form))
    assert values == {"name": "bells", "evaluation_share": "25", "max_bad_share": "7"}
    assert re.findall(r"<option selected>(\w+)", form) == ["text", "audio"]
    assert "cmcl dataset add FOLDER --pair text,audio --model scenes" in form
    assert " checked>" not in form


def test_a_candidate_is_approved_with_a_reason(plane: ControlPlane, person: Browser) -> None:
    job = _held(plane)
    page = person.get(f"/ui/jobs/{job}/approve")
    assert "v1 becomes the newest version: the next dataset is learned from it" in page.text
    assert "It becomes live on all replicas within seconds" in page.text
    form = {"seen": seen_in(page), "reason": HOSTILE}
    after = person.follow(person.post(f"/ui/jobs/{job}/approve", data=form))
    assert "The candidate was approved." in after.text
    plane.tick(3)
    job_page = person.get(f"/ui/jobs/{job}").text
    for shown in (after.text, job_page):
        assert "<script>alert" not in shown
        assert html.escape(HOSTILE, quote=False)[:20] in shown
        assert "{{ 7 * 7 }}" in shown
    approval = plane.job(job).approval
    assert approval is not None
    assert (approval.decision, approval.reason) == ("approved", HOSTILE)
    assert plane.job(job).state == JobState.PUBLISHED


def test_a_job_can_be_followed_while_storage_is_away(plane: ControlPlane, person: Browser) -> None:
    job = _held(plane)
    plane.store.broken = "runs/"
    page = text_of(person.get(f"/ui/jobs/{job}").text)
    assert "The candidate cannot be read: the object storage does not respond." in page
    # But nobody decides on what cannot be read.
    assert person.get(f"/ui/jobs/{job}/approve").status_code == 503


def test_a_decision_needs_a_reason(plane: ControlPlane, person: Browser) -> None:
    job = _held(plane)
    for reason, message in (
        ("", "reason"),
        ("   ", "at least 1 character"),
        ("x" * 501, "at most 500 characters"),
        ("a\0b", "reason"),
    ):
        form = {"seen": str(plane.job(job).revision), "reason": reason}
        answer = person.post(f"/ui/jobs/{job}/reject", data=form)
        assert (answer.status_code, message in answer.text) == (422, True), reason
        assert plane.job(job).state == JobState.HELD


def test_a_decision_that_comes_too_late_shows_the_other_one(
    plane: ControlPlane, person: Browser
) -> None:
    job = _held(plane)
    seen = seen_in(person.get(f"/ui/jobs/{job}/reject"))
    form = {"seen": seen, "reason": "worse on rain"}
    assert person.post(f"/ui/jobs/{job}/reject", data=form).status_code == 303
    answer = person.post(f"/ui/jobs/{job}/approve", data={"seen": seen, "reason": "fine"})
    assert answer.status_code == 412
    assert "Nothing was done" in answer.text
    assert "worse on rain" in answer.text
    assert "Only a held candidate can be approved." in answer.text
    assert plane.job(job).state == JobState.REJECTED
