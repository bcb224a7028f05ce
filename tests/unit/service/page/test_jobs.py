"""The page of a job: how its attempts ended."""

import re
from typing import Any, get_args

import pytest
from sqlalchemy import update

from cmcl.contract.api.jobs import JobState
from service.database.queries.attempts import AttemptOutcome
from service.database.tables import attempts, events, jobs
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import report_progress
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


@pytest.mark.parametrize("state", JobState)
def test_the_history_of_a_job_has_the_words_of_its_states(
    plane: ControlPlane, person: Browser, state: JobState
) -> None:
    job = plane.post_dataset()
    with plane.context.database.write() as connection:
        connection.execute(update(jobs).values(state=state))
        connection.execute(update(events).values(kind=f"job.{state}"))
    heading = person.get(f"/ui/jobs/{job}?fragment=live_heading").text
    word = re.search(r'class="state [^>]*>([^<]*)<', heading)
    assert word is not None
    history = text_of(person.get(f"/ui/jobs/{job}?fragment=live_events").text)
    assert f"job {word[1]}" in history
    kinds = dict(
        re.findall(r'<option value="([^"]*)"[^>]*>([^<]*)<', person.get("/ui/events").text)
    )
    assert kinds[f"job.{state}"] == f"job {word[1]}"


@pytest.mark.parametrize("outcome", get_args(AttemptOutcome))
def test_every_outcome_of_an_attempt_is_shown(
    plane: ControlPlane, person: Browser, outcome: AttemptOutcome
) -> None:
    job = plane.post_dataset()
    plane.run_to_end(job)
    with plane.context.database.write() as connection:
        connection.execute(update(attempts).values(outcome=outcome))
    assert outcome_shown(person, job) == {"candidate": "wrote a candidate"}.get(outcome, outcome)


def test_the_page_of_a_measured_job_has_its_attempt(plane: ControlPlane, person: Browser) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    job = plane.post_dataset("views", evaluate_only=True)
    assert plane.run_to_end(job).state == JobState.EVALUATED
    assert outcome_shown(person, job) == "measured"


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
        (each["phase"] + (" (running)" if each["running"] else ""), f"{each['seconds']:.1f}")
        for each in listed
    ]
    assert "training (running)" in dict(rows)
    # A part of an open page that changes by itself.
    assert "data-every" in part
