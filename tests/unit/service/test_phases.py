"""The phases of a job: where its time went."""

from datetime import timedelta
from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Failure, Phase
from cmcl.storage import layout
from cmcl.storage.running import mark_ended
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import report_progress, train


def _phases(plane: ControlPlane, job: str) -> dict[str, Any]:
    response = plane.client.get(f"/v1/jobs/{job}/phases")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert found["seconds"] == pytest.approx(sum(each["seconds"] for each in found["phases"]))
    return found


def _named(found: dict[str, Any]) -> dict[str, float]:
    return {each["phase"]: each["seconds"] for each in found["phases"]}


def _present(found: dict[str, Any]) -> list[str]:
    return [each["phase"] for each in found["phases"] if each["running"]]


def _report(plane: ControlPlane, job: str, phase: Phase, seconds: dict[Phase, float]) -> None:
    """Show progress now, and let the control plane see it."""
    figures: Any = {"seconds": seconds, "at": plane.clock()}
    report_progress(plane.store, job, plane.job(job).attempt, phase, figures=figures)
    plane.tick()


def test_the_phases_of_a_published_job_add_up_to_its_time(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    submitted = plane.clock()
    plane.clock.advance(9)
    _report(plane, job, "training", {"reading": 2.0, "training": 4.0})
    train(plane.store, job, 1)
    _report(plane, job, "done", {"reading": 2.0, "training": 5.0, "writing": 0.5})
    plane.tick_to(job, JobState.PUBLISHED)
    plane.tick(3)
    found, (version,) = _phases(plane, job), plane.versions()
    assert _present(found) == []
    assert list(_named(found)) == [
        *("queued", "preparing", "prepared", "submitting"),
        *("waiting", "reading", "training", "writing", "done"),
        *("gating", "storing"),
    ]
    assert version.stored_at is not None
    whole = version.stored_at - plane.job(job).created_at
    assert found["seconds"] == pytest.approx(whole.total_seconds())
    named = _named(found)
    assert (named["reading"], named["training"], named["writing"]) == (2.0, 5.0, 0.5)
    # The last report was made ten seconds after the submission and a tick, and states 7.5 seconds.
    waited = (plane.clock() - submitted).total_seconds() - 7.5
    assert 0 < named["waiting"] < waited


def test_the_present_phase_of_a_running_job_goes_on(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    assert _present(_phases(plane, job)) == ["queued"]
    plane.tick_to(job, JobState.RUNNING)
    plane.tick()
    assert _present(_phases(plane, job)) == ["waiting"]
    plane.clock.advance(5)
    _report(plane, job, "training", {"reading": 2.0, "training": 1.0})
    before = _phases(plane, job)
    plane.clock.advance(3)
    after = _phases(plane, job)
    assert _present(after) == ["training"]
    assert _named(after)["training"] == pytest.approx(_named(before)["training"] + 3)
    assert _named(after)["reading"] == 2.0


@pytest.mark.parametrize("off", [-3600, 3600])
def test_a_clock_of_the_ranks_that_is_wrong_changes_no_sum(plane: ControlPlane, off: int) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.clock.advance(9)
    figures: Any = {
        "seconds": {"training": 4.0},
        "at": plane.clock() + timedelta(seconds=off),
    }
    report_progress(plane.store, job, 1, "training", figures=figures)
    plane.tick()
    found = _phases(plane, job)
    passed = (plane.clock() - plane.job(job).created_at).total_seconds()
    assert found["seconds"] == pytest.approx(passed)
    assert all(each["seconds"] >= 0 for each in found["phases"])


def test_a_lost_attempt_is_one_phase_and_the_next_one_has_its_own(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    _report(plane, job, "training", {"training": 1.0})
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "out of memory")
    plane.tick_to(job, JobState.PREPARED)
    plane.tick_to(job, JobState.RUNNING)
    _report(plane, job, "reading", {"reading": 1.0})
    names = [each["phase"] for each in _phases(plane, job)["phases"]]
    assert names[4:] == ["running", "prepared", "submitting", "waiting", "reading"]


def test_a_retried_job_begins_anew(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    failure = Failure(reason="training_failed", message="on purpose")
    plane.store.put(layout.run_failure(job, 1), failure.model_dump_json().encode())
    mark_ended(plane.store, job, 1)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "on purpose")
    plane.tick_to(job, JobState.FAILED)
    assert _present(_phases(plane, job)) == []
    plane.clock.advance(1000)
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    found = _phases(plane, job)
    assert (_present(found), found["seconds"]) == (["queued"], 0.0)
