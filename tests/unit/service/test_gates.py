"""The gate gate, and decisions of users."""

import pytest

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.gate import Gate
from cmcl.contract.version import Recall, VersionManifest
from cmcl.storage import layout
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train

GATE = "/v1/models/scenes/gate"


def _recall(at_1: float) -> Recall:
    return Recall(rows=10, at_1=at_1, at_5=at_1, at_10=at_1)


def _set(plane: ControlPlane, **gate: object) -> None:
    assert plane.client.put(GATE, json=gate).status_code == 200


def _measured(plane: ControlPlane, job: str, old: float, new: float, before: float) -> None:
    """A candidate with recalls: of the first dataset, of the new one, and of the parent on it."""
    plane.tick_to(job, JobState.RUNNING)
    candidate = train(plane.store, job, plane.job(job).attempt, write=False)
    evaluation = {candidate.learned[0].dataset: _recall(old), candidate.dataset: _recall(new)}
    report = candidate.report.model_copy(
        update={"evaluation": evaluation, "recall_before": _recall(before)}
    )
    first = candidate.learned[0].model_copy(update={"recall": _recall(0.8)})
    _rewrite(plane, candidate, report=report, learned=(first, *candidate.learned[1:]))


def _rewrite(plane: ControlPlane, candidate: VersionManifest, **changes: object) -> None:
    train(plane.store, candidate.job, candidate.attempt, changes=changes)


@pytest.fixture
def grown(plane: ControlPlane) -> ControlPlane:
    """A control plane with a version that has a recall of 0.8 on its own dataset."""
    job = plane.post_dataset("one")
    plane.tick_to(job, JobState.RUNNING)
    candidate = train(plane.store, job, 1, write=False)
    line = candidate.learned[0].model_copy(update={"recall": _recall(0.8)})
    _rewrite(plane, candidate, learned=(line,))
    plane.run_to_end(job)
    return plane


@pytest.mark.parametrize(
    ("gate", "old", "new", "before", "reason"),
    [
        ({"min_backward_transfer": -0.05}, 0.7, 0.9, 0.1, FailureReason.FORGETTING_TOO_LARGE),
        ({"min_backward_transfer": -0.15}, 0.7, 0.9, 0.1, None),
        ({"min_gain": 0.5}, 0.8, 0.5, 0.1, FailureReason.GAIN_TOO_SMALL),
        ({"min_gain": 0.3}, 0.8, 0.5, 0.1, None),
        ({"max_drift": 0.05}, 0.8, 0.5, 0.1, FailureReason.DRIFT_TOO_LARGE),
    ],
)
def test_the_gate_decides(
    grown: ControlPlane,
    gate: dict[str, float],
    old: float,
    new: float,
    before: float,
    reason: FailureReason | None,
) -> None:
    _set(grown, **gate)
    job = grown.post_dataset("two")
    _measured(grown, job, old, new, before)
    ended = grown.run_to_end(job)
    assert ended.reason == reason
    assert ended.state == (JobState.REJECTED if reason else JobState.PUBLISHED)


@pytest.mark.parametrize("gate", [{"min_backward_transfer": 0}, {"min_gain": 0}])
def test_what_was_not_measured_was_not_shown(grown: ControlPlane, gate: dict[str, float]) -> None:
    _set(grown, **gate)
    assert grown.run_to_end(grown.post_dataset("two")).reason == FailureReason.NOT_MEASURED


def test_after_a_rejection_the_next_grows_from_the_newest_version(grown: ControlPlane) -> None:
    _set(grown, max_drift=0.05)
    rejected = grown.post_dataset("two")
    assert grown.run_to_end(rejected).state == JobState.REJECTED
    assert grown.has_candidate(grown.job(rejected))
    _set(grown, max_drift=1)
    assert grown.run_to_end(grown.post_dataset("three")).parent_version == 1
    assert [version.number for version in grown.versions()] == [1, 2]


def test_a_rejected_job_is_retried_under_another_gate(grown: ControlPlane) -> None:
    _set(grown, max_drift=0.05)
    job = grown.post_dataset("two")
    grown.run_to_end(job)
    refusal = grown.client.post(f"/v1/jobs/{job}/approve", json={"reason": "it is fine"})
    assert refusal.status_code == 409
    assert "change the gate of 'scenes'" in refusal.json()["detail"]
    assert "retry the job" in refusal.json()["detail"]
    _set(grown, max_drift=1)
    grown.run_to_end(grown.post_dataset("three"))
    assert grown.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    ended = grown.run_to_end(job)
    assert (ended.state, ended.reason, ended.attempt) == (JobState.PUBLISHED, None, 2)
    # It starts from the version that was published in the meantime.
    assert (ended.parent_version, ended.version) == (2, 3)


def test_a_rejected_job_is_rejected_again_under_the_same_gate(grown: ControlPlane) -> None:
    _set(grown, max_drift=0.05)
    job = grown.post_dataset("two")
    grown.run_to_end(job)
    assert grown.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    ended = grown.run_to_end(job)
    assert (ended.state, ended.attempt) == (JobState.REJECTED, 2)


def test_an_approval_is_of_one_candidate_and_not_of_the_next_attempt(grown: ControlPlane) -> None:
    _set(grown, manual_approval=True)
    job = grown.post_dataset("two")
    candidate = train(grown.store, job, grown.tick_to(job, JobState.RUNNING).attempt)
    grown.tick_to(job, JobState.HELD)
    assert grown.client.post(f"/v1/jobs/{job}/approve", json={}).status_code == 202
    grown.store.put(layout.blob(candidate.files[layout.HEADS].sha256), b"damaged")
    assert grown.run_to_end(job).state == JobState.FAILED
    assert grown.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    train(grown.store, job, grown.tick_to(job, JobState.RUNNING).attempt)
    held = grown.tick_to(job, JobState.HELD)
    assert (held.attempt, held.approval) == (2, None)


def test_a_candidate_waits_for_approval(grown: ControlPlane) -> None:
    _set(grown, manual_approval=True)
    job = grown.post_dataset("two")
    grown.tick_to(job, JobState.RUNNING)
    train(grown.store, job, 1)
    grown.tick_to(job, JobState.HELD)
    waiting = grown.post_dataset("three")
    grown.tick(5)
    assert grown.job(job).state == JobState.HELD
    assert grown.job(waiting).state == JobState.PREPARED
    assert grown.client.post(f"/v1/jobs/{job}/approve", json={}).status_code == 202
    assert grown.run_to_end(job).state == JobState.PUBLISHED


def test_a_held_candidate_can_be_rejected(grown: ControlPlane) -> None:
    _set(grown, manual_approval=True)
    job = grown.post_dataset("two")
    grown.tick_to(job, JobState.RUNNING)
    train(grown.store, job, 1)
    grown.tick_to(job, JobState.HELD)
    answer = grown.client.post(f"/v1/jobs/{job}/reject", json={"reason": "wrong captions"})
    assert answer.json()["state"] == "rejected"
    assert answer.json()["message"] == "local: wrong captions"
    assert answer.json()["approval"]["decision"] == "rejected"
    assert grown.client.post(f"/v1/jobs/{job}/reject", json={}).status_code == 409


def test_a_held_candidate_can_be_cancelled(grown: ControlPlane) -> None:
    _set(grown, manual_approval=True)
    job = grown.post_dataset("two")
    grown.tick_to(job, JobState.RUNNING)
    train(grown.store, job, 1)
    grown.tick_to(job, JobState.HELD)
    assert grown.client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"


def test_a_gate_is_not_overwritten_unseen(plane: ControlPlane) -> None:
    tag = plane.client.get(GATE).headers["ETag"]
    first = plane.client.put(GATE, json={"max_drift": 1}, headers={"If-Match": tag})
    assert first.status_code == 200
    late = plane.client.put(GATE, json={"max_drift": 2}, headers={"If-Match": tag})
    assert late.status_code == 412
    assert plane.model().gate == Gate(max_drift=1)
    assert plane.client.get(GATE).headers["ETag"] == first.headers["ETag"] != tag


@pytest.mark.parametrize("tag", ["3", "W/*", '"x"', "none"])
def test_a_tag_that_is_none_is_refused(plane: ControlPlane, tag: str) -> None:
    answer = plane.client.put(GATE, json={}, headers={"If-Match": tag})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "If-Match"


def test_an_earlier_dataset_whose_held_out_rows_are_lost_was_not_shown(grown: ControlPlane) -> None:
    _set(grown, min_backward_transfer=-0.05)
    job = grown.post_dataset("two")
    grown.tick_to(job, JobState.RUNNING)
    candidate = train(grown.store, job, grown.job(job).attempt, write=False)
    lost = {candidate.learned[0].dataset: "there is no such object"}
    report = candidate.report.model_copy(update={"not_evaluated": lost})
    _rewrite(grown, candidate, report=report)
    ended = grown.run_to_end(job)
    assert ended.reason == FailureReason.NOT_MEASURED
    assert "'one'" in str(ended.message)
    assert "there is no such object" in str(ended.message)
