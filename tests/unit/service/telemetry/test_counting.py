"""Every event is counted once, in any code path, and only after its commit."""

from pathlib import Path

import pytest
from sqlalchemy import Connection

from cmcl.contract.api.jobs import FailureReason, JobState
from service.core.principal import LOCAL
from service.jobs import transitions
from service.jobs.transitions import ActorNote
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.unit.service.telemetry.samples import shown

FINISHED = "jobs_finished_total"


def hold(plane: ControlPlane) -> str:
    """A job whose candidate waits for approval."""
    gate = {"manual_approval": True}
    headers = {"If-Match": plane.client.get("/v1/models/scenes/gate").headers["etag"]}
    answer = plane.client.put("/v1/models/scenes/gate", json=gate, headers=headers)
    assert answer.status_code == 200, answer.text
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.HELD)
    return job


def test_a_published_job_is_counted_once(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset())
    assert shown(plane, FINISHED, state="published", reason="") == 1
    assert shown(plane, "attempts_lost_total") == 0


def test_a_job_cancelled_while_it_waits_is_counted(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    for _ in range(2):
        plane.client.post(f"/v1/jobs/{job}/cancel")
    assert shown(plane, FINISHED, state="cancelled", reason="") == 1


def test_a_candidate_rejected_by_hand_is_counted(plane: ControlPlane) -> None:
    job = hold(plane)
    plane.client.post(f"/v1/jobs/{job}/reject", json={"reason": "blurred"})
    assert plane.job(job).state == JobState.REJECTED
    assert shown(plane, FINISHED, state="rejected", reason="rejected_by_hand") == 1


def test_a_lost_attempt_is_counted_also_the_last_one(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, max_attempts=2, lost_attempt_grace_seconds=0)
    plane.create_model()
    job = plane.post_dataset()
    for attempt in (1, 2):
        plane.tick_to(job, JobState.RUNNING)
        plane.launcher.end(f"{job}-a{attempt}", LaunchState.FAILED)
        plane.tick()
    assert plane.job(job).reason == FailureReason.ATTEMPTS_EXHAUSTED
    assert shown(plane, "attempts_lost_total") == 2
    assert shown(plane, FINISHED, state="failed", reason="attempts_exhausted") == 1
    plane.close()


def test_what_was_rolled_back_is_not_counted(plane: ControlPlane) -> None:
    job = plane.post_dataset()

    def cancel_and_fail(connection: Connection) -> None:
        transitions.cancel(connection, job, ActorNote(LOCAL, plane.clock()))
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError):
        plane.context.database.settle(cancel_and_fail)
    assert plane.job(job).state == JobState.QUEUED
    assert shown(plane, FINISHED, state="cancelled", reason="") == 0


def test_the_stages_add_up_to_the_time_from_post_to_live(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.clock.advance(40)
    plane.tick_to(job, JobState.RUNNING)
    plane.clock.advance(100)
    plane.run_to_end(job)
    stages = ("queued", "preparing", "prepared", "submitting", "running", "gating", "storing")
    seconds = {name: shown(plane, "stage_seconds_sum", stage=name) or 0 for name in stages}
    assert seconds["queued"] == 40
    assert seconds["running"] >= 100
    assert sum(seconds.values()) == shown(plane, "post_to_live_seconds_sum")


def test_the_counters_of_two_replicas_add_up(tmp_path: Path) -> None:
    one = ControlPlane(tmp_path)
    one.create_model()
    two = ControlPlane(tmp_path, one.launcher, one.clock)
    job = one.post_dataset()
    one.tick_to(job, JobState.RUNNING)
    one.clock.advance(60)
    two.run_to_end(job)
    for name, labels in (
        ("stage_seconds_count", {"stage": "submitting"}),
        (FINISHED, {"state": "published", "reason": ""}),
    ):
        assert (shown(one, name, **labels) or 0) + (shown(two, name, **labels) or 0) == 1
    assert shown(two, FINISHED, state="published", reason="") == 1
    one.close()
    two.close()


def test_rounds_and_steps_are_measured(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset())
    plane.tick()
    for step in ("queued", "submitting", "running", "gating", "store", "pointer"):
        assert (shown(plane, "reconcile_step_seconds_count", step=step) or 0) >= 1
    plane.clock.advance(30)
    assert shown(plane, "reconcile_round_age_seconds") == 31
