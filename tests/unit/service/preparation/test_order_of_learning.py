"""Datasets of a model are prepared at the same time, and learned in the order of their arrival."""

from sqlalchemy import update

from cmcl.contract.api.jobs import JobState
from cmcl.contract.dataset import RejectedRow
from cmcl.storage import layout
from service.database import tables
from service.database.queries.job_queue import MOST_OF_MODEL
from service.launchers.port import LaunchState
from tests.fakes.preparer import (
    fail,
    prepare,
    prepare_all,
)
from tests.unit.service.preparation.conftest import Unattended

BAD_ROW = RejectedRow(
    id="row-7", file="s3://captures/a.jsonl", row=7, place="a.jsonl line 8", reason="no image"
)


def states(plane: Unattended, jobs: list[str]) -> list[JobState]:
    return [plane.job(job).state for job in jobs]


def test_the_first_of_a_model_are_prepared_and_the_others_wait(plane: Unattended) -> None:
    jobs = [plane.post_dataset(f"data-{number}") for number in range(MOST_OF_MODEL + 2)]
    plane.tick(4)
    assert states(plane, jobs) == [JobState.PREPARING] * MOST_OF_MODEL + [JobState.QUEUED] * 2
    prepare(plane.store, plane.request_of(jobs[3]))
    plane.tick(4)
    # The number of datasets prepared ahead is bounded too.
    assert plane.job(jobs[3]).state == JobState.PREPARED
    assert states(plane, jobs[-2:]) == [JobState.QUEUED] * 2
    prepare(plane.store, plane.request_of(jobs[0]))
    plane.tick(6)
    assert plane.job(jobs[0]).state == JobState.RUNNING
    assert states(plane, jobs[-2:]) == [JobState.PREPARING, JobState.QUEUED]


def test_datasets_are_learned_in_the_order_of_their_arrival(plane: Unattended) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    prepare(plane.store, plane.request_of(second))
    plane.tick_to(second, JobState.PREPARED)
    plane.tick(5)
    assert plane.job(second).state == JobState.PREPARED
    assert "waits for its turn" in (plane.job(second).message or "")
    prepare(plane.store, plane.request_of(first))
    plane.run_to_end(first)
    plane.run_to_end(second)
    assert [version.job for version in plane.versions()] == [first, second]


def test_a_job_that_failed_keeps_no_other_waiting(plane: Unattended) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    prepare(plane.store, plane.request_of(second))
    fail(plane.store, plane.request_of(first), "invalid_dataset", "no image")
    assert plane.run_to_end(second).state == JobState.PUBLISHED


def test_an_old_job_that_is_retried_is_prepared_before_those_behind_it(plane: Unattended) -> None:
    old = plane.post_dataset("old")
    fail(plane.store, plane.request_of(old), "encoder_unavailable", "no node has it")
    plane.tick_to(old, JobState.FAILED)
    others = [plane.post_dataset(f"data-{number}") for number in range(MOST_OF_MODEL)]
    plane.tick(4)
    assert states(plane, others) == [JobState.PREPARING] * MOST_OF_MODEL
    assert plane.client.post(f"/v1/jobs/{old}/retry").status_code == 202
    plane.tick(3)
    assert plane.job(old).state == JobState.PREPARING


def test_a_lost_attempt_does_not_prepare_its_dataset_again(plane: Unattended) -> None:
    plane.preparer = prepare_all
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "killed")
    plane.store.calls.clear()
    found = plane.tick_to(job, JobState.PREPARED)
    plane.tick_to(job, JobState.RUNNING)
    assert (found.preparation, plane.job(job).attempt) == (1, 2)
    assert not [key for key in plane.store.calls if key.startswith(layout.preparations())]


def test_errors_of_one_preparation_do_not_delay_another(plane: Unattended) -> None:
    broken, sound = plane.post_dataset("broken"), plane.post_dataset("sound")
    requests = [plane.request_of(job) for job in (broken, sound)]
    plane.store.broken = requests[0].dataset
    prepare(plane.store, requests[1])
    plane.tick_to(sound, JobState.PREPARED)
    assert "waiting" in (plane.job(broken).message or "")


def test_a_row_that_cannot_be_read_stops_no_other_model(plane: Unattended) -> None:
    plane.create_model("sounds")
    plane.post_dataset("broken")
    sound = plane.post_dataset("sound", "sounds")
    with plane.context.database.write() as connection:
        broken = update(tables.jobs).where(tables.jobs.c.model == "scenes")
        connection.execute(broken.values(prepare_progress={"phase": "lunch"}))
    prepare(plane.store, plane.request_of(sound))
    plane.tick_to(sound, JobState.RUNNING)


def test_a_training_is_watched_while_another_dataset_is_prepared(plane: Unattended) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    prepare(plane.store, plane.request_of(first))
    plane.tick_to(first, JobState.RUNNING)
    assert plane.job(second).state == JobState.PREPARING
    assert plane.run_to_end(first).state == JobState.PUBLISHED
