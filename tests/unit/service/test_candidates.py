"""The candidate of a job beside its parent, for its approver."""

from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.version import HeadCapacity, Quality, Recall, VersionReport
from cmcl.storage import layout
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient

GATE = "/v1/models/scenes/gate"


def _recall(at_1: float) -> Recall:
    return Recall(rows=10, at_1=at_1, at_5=at_1, at_10=at_1)


def _head(free_share: float) -> HeadCapacity:
    return HeadCapacity(
        free_share=free_share,
        input_directions=1,
        input_width=5,
        output_directions=2,
        output_width=8,
    )


def _publish_first(plane: ControlPlane) -> str:
    """Publish a version with a recall of 0.8 and a free share of 0.7; return its dataset."""
    job = plane.post_dataset("one")
    plane.tick_to(job, JobState.RUNNING)
    made = train(plane.store, job, 1, write=False)
    line = made.learned[0].model_copy(update={"recall": _recall(0.8)})
    report = made.report.model_copy(
        update={"evaluation": {made.dataset: _recall(0.8)}, "capacity": {"image": _head(0.7)}}
    )
    train(plane.store, job, 1, changes={"learned": (line,), "report": report})
    plane.run_to_end(job)
    return str(made.dataset)


def _train_second(plane: ControlPlane, job: str, old: float = 0.75) -> VersionReport:
    """Write a candidate whose recall of the first dataset is `old`, and of its own 0.6 after 0.1."""
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    made = train(plane.store, job, attempt, drift=0.2, write=False)
    first = made.learned[0].dataset
    report = made.report.model_copy(
        update={
            "evaluation": {first: _recall(old), made.dataset: _recall(0.6)},
            "recall_before": _recall(0.1),
            "capacity": {"image": _head(0.5), "text": _head(0.9)},
            "quality": {first: Quality(now=-0.9, best=-1.2, norm_change={"image": 0.1})},
        }
    )
    train(plane.store, job, attempt, changes={"report": report})
    return report


def _candidate(plane: ControlPlane, job: str) -> Any:
    response = plane.client.get(f"/v1/jobs/{job}/candidate")
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def held(plane: ControlPlane) -> tuple[ControlPlane, str]:
    """A control plane with a version, and a held job."""
    _publish_first(plane)
    assert plane.client.put(GATE, json={"manual_approval": True, "max_drift": 0.3}).is_success
    job = plane.post_dataset("two")
    _train_second(plane, job)
    plane.tick_to(job, JobState.HELD)
    return plane, job


def test_a_held_candidate_is_shown_beside_its_parent(held: tuple[ControlPlane, str]) -> None:
    plane, job = held
    found = _candidate(plane, job)
    assert (found["job"], found["version"], found["parent"]) == (job, 2, 1)
    assert found["manual_approval"] is True
    old, new = found["datasets"]
    assert (old["name"], old["is_new"], old["version"]) == ("one", False, 1)
    recalls = ("recall_learned", "recall_before", "recall_after")
    assert [old[name]["at_1"] for name in recalls] == [0.8, 0.8, 0.75]
    # The parent learned it, so it has not moved there.
    assert (old["drift_before"], old["drift_after"], old["quality_before"]) == (None, 0.2, None)
    assert (old["quality_after"]["now"], old["quality_after"]["best"]) == (-0.9, -1.2)
    assert (new["name"], new["is_new"], new["drift_after"]) == ("two", True, None)
    assert [new[name] and new[name]["at_1"] for name in recalls] == [None, 0.1, 0.6]
    assert found["capacity"]["image"]["before"]["free_share"] == 0.7
    assert found["capacity"]["image"]["after"]["free_share"] == 0.5
    assert found["capacity"]["text"]["before"] is None


def test_each_bound_is_shown_with_what_was_found(held: tuple[ControlPlane, str]) -> None:
    plane, job = held
    drift, transfer, gain = _candidate(plane, job)["bounds"]
    assert (drift["permitted"], drift["found"], drift["met"]) == (0.3, 0.2, True)
    assert (transfer["permitted"], transfer["met"]) == (None, None)
    assert transfer["found"] == pytest.approx(-0.05)
    assert (gain["permitted"], gain["found"]) == (None, pytest.approx(0.5))
    # The gate may change while the candidate waits.
    plane.client.put(GATE, json={"max_drift": 0.1, "min_gain": 0.6, "manual_approval": True})
    drift, _, gain = _candidate(plane, job)["bounds"]
    assert (drift["met"], gain["met"]) == (False, False)
    assert "moved further than 10 %" in drift["message"]
    assert "by 20 %" in drift["message"]
    assert "asked for: +60.00 points" in gain["message"]


def test_a_rejected_candidate_is_shown_with_the_reason_until_it_is_removed(
    plane: ControlPlane,
) -> None:
    _publish_first(plane)
    plane.client.put(GATE, json={"min_backward_transfer": -0.01})
    job = plane.post_dataset("two")
    _train_second(plane, job)
    plane.tick_to(job, JobState.REJECTED)
    transfer = _candidate(plane, job)["bounds"][1]
    assert transfer["met"] is False
    assert transfer["message"] == plane.job(job).message
    plane.store.delete(layout.run_candidate(job, 1))
    response = plane.client.get(f"/v1/jobs/{job}/candidate")
    assert response.status_code == 404
    assert "was removed; post the dataset again" in response.json()["detail"]


def test_a_first_candidate_has_no_parent_and_meets_every_bound(plane: ControlPlane) -> None:
    plane.client.put(GATE, json={"manual_approval": True, "min_backward_transfer": 0})
    job = plane.post_dataset("one")
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.HELD)
    found = _candidate(plane, job)
    assert found["parent"] is None
    assert [each["is_new"] for each in found["datasets"]] == [True]
    assert [bound["met"] for bound in found["bounds"]] == [None, True, None]


def test_without_a_candidate_the_state_is_named(held: tuple[ControlPlane, str]) -> None:
    plane, job = held
    waiting = plane.post_dataset("three")
    response = plane.client.get(f"/v1/jobs/{waiting}/candidate")
    assert response.status_code == 404
    assert f"job {waiting} is queued" in response.json()["detail"]
    plane.client.post(f"/v1/jobs/{job}/approve", json={})
    plane.tick_to(job, JobState.PUBLISHED)
    response = plane.client.get(f"/v1/jobs/{job}/candidate")
    assert response.status_code == 404
    assert "GET /v1/models/scenes/versions/2" in response.json()["detail"]


def test_a_damaged_candidate_is_a_conflict(held: tuple[ControlPlane, str]) -> None:
    plane, job = held
    plane.store.put(layout.run_candidate(job, 1), b"{}")
    response = plane.client.get(f"/v1/jobs/{job}/candidate")
    assert response.status_code == 409
    assert "is damaged" in response.json()["detail"]


def test_a_candidate_is_shown_to_its_owner_alone(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    operator = KeyClient(plane, ADMIN_KEY)
    red, blue = (operator.client_with_key(owner, owner=owner) for owner in ("red", "blue"))
    plane.client = red
    plane.create_model()
    plane.client.put(GATE, json={"manual_approval": True})
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.HELD)
    path = f"/v1/jobs/{job}/candidate"
    answers = [client.get(path).status_code for client in (red, operator, blue)]
    assert answers == [200, 200, 404]
    plane.close()
