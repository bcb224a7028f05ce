"""The gate: what a candidate must show, what follows from it, and candidates beside their parents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.errors import InvalidVersion
from cmcl.contract.job import JobSpec
from cmcl.contract.model import Gate, ModelSpec
from cmcl.contract.version import (
    Agreement,
    Drift,
    Halves,
    Overlap,
    Quality,
    Recall,
    VersionManifest,
    VersionReport,
    datasets_to_measure,
)
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.running import mark_ended
from service.jobs.gate import bounds, check_answers, worst_shortfall
from tests.fakes.control_plane import ControlPlane, reopened
from tests.fakes.measured import head
from tests.fakes.trainer import train
from workers.train.job import train_dataset

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


@pytest.fixture(scope="module")
def grown_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plane = ControlPlane(tmp_path_factory.mktemp("grown"))
    plane.create_model()
    job = plane.post_dataset("one")
    plane.tick_to(job, JobState.RUNNING)
    candidate = train(plane.store, job, 1, write=False)
    line = candidate.learned[0].model_copy(update={"recall": _recall(0.8)})
    _rewrite(plane, candidate, learned=(line,))
    plane.run_to_end(job)
    plane.close()
    return plane.folder


@pytest.fixture
def grown(grown_folder: Path, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with a version that has a recall of 0.8 on its own dataset."""
    with reopened(grown_folder, tmp_path) as plane:
        yield plane


@pytest.mark.parametrize(
    ("gate", "old", "new", "before", "reason"),
    [
        ({"min_backward_transfer": -0.05}, 0.7, 0.9, 0.1, FailureReason.FORGETTING_TOO_LARGE),
        ({"min_backward_transfer": -0.15}, 0.7, 0.9, 0.1, None),
        ({"min_gain": 0.5}, 0.8, 0.5, 0.1, FailureReason.GAIN_TOO_SMALL),
        ({"min_gain": 0.3}, 0.8, 0.5, 0.1, None),
        ({"max_drift": 0.05}, 0.8, 0.5, 0.1, FailureReason.DRIFT_TOO_LARGE),
        ({"min_overlap": 0.7}, 0.8, 0.5, 0.1, FailureReason.RESULTS_CHANGED),
        ({"min_overlap": 0.6}, 0.8, 0.5, 0.1, None),
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


@pytest.mark.parametrize("gate", [{"max_drift": 0.5}, {"min_backward_transfer": -1}])
def test_a_bound_that_is_newer_than_a_candidate_needs_what_it_did_not_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: dict[str, float]
) -> None:
    monkeypatch.setattr("cmcl.contract.version._MOST_MEASURED", 1)
    plane = ControlPlane(tmp_path)
    plane.create_model(policy="improve")
    for name in ("one", "two"):
        plane.run_to_end(plane.post_dataset(name))
    job = plane.post_dataset("three")
    plane.tick_to(job, JobState.RUNNING)
    spec = read_document(plane.store, layout.run_spec(job, 1), JobSpec)
    assert not spec.measures_all
    candidate = train(plane.store, job, 1, write=False)
    (due,) = datasets_to_measure(spec, candidate.earlier)
    drift = {due.dataset: candidate.report.drift[due.dataset]}
    _rewrite(plane, candidate, report=candidate.report.model_copy(update={"drift": drift}))
    assert not spec.measures_agreement
    _set(plane, **gate, bounds="auto")
    assert plane.run_to_end(job).reason == FailureReason.NOT_MEASURED
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    plane.tick_to(job, JobState.RUNNING)
    spec = read_document(plane.store, layout.run_spec(job, 2), JobSpec)
    assert spec.measures_all
    assert spec.measures_agreement
    plane.close()


HALVES = Halves(agreement=2.0, correlation=0.5)


def _by_chance(plane: ControlPlane, job: str, **changes: object) -> VersionManifest:
    """A candidate whose earlier dataset has two halves; by default it equals its parent."""
    plane.tick_to(job, JobState.RUNNING)
    candidate = train(plane.store, job, plane.job(job).attempt, write=False)
    first = candidate.learned[0]
    unchanged = {
        "drift": {first.dataset: Drift(since_learned=0, against_parent=0)},
        "evaluation": {first.dataset: _recall(0.8)},
        "overlap": {first.dataset: Overlap(rows=10, expected=1, halves=0.4, measured=1)},
        "agreement": Agreement(dataset=first.dataset, score=1.9, least=1.8),
    }
    report = candidate.report.model_copy(update={**unchanged, **changes})
    learned = (first.model_copy(update={"halves": HALVES}), *candidate.learned[1:])
    return candidate.model_copy(update={"report": report, "learned": learned})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"drift": Drift(since_learned=1.5, against_parent=1)}, None),
        ({"evaluation": _recall(0.5)}, None),
        ({"evaluation": Recall(rows=10**4, at_1=0.5, at_5=1, at_10=1)}, "-30.00 points on average"),
        ({"overlap": Overlap(rows=10, expected=0.41, halves=0.4, measured=0.1)}, None),
        ({"overlap": Overlap(rows=10, expected=0.39, halves=0.4)}, "share 40 %"),
        ({"agreement": Agreement(dataset=None, score=0.2, least=0.3)}, "without any relation"),
    ],
)
def test_bounds_by_chance_hold_what_is_worse_and_never_a_version_equal_to_its_parent(
    grown: ControlPlane, changed: dict[str, Any], words: str | None
) -> None:
    job = grown.post_dataset("two")
    first = grown.versions()[0].manifest.learned[0].dataset
    changes = {
        name: each if name == "agreement" else {first: each} for name, each in changed.items()
    }
    candidate = _by_chance(grown, job, **changes)
    assert worst_shortfall(Gate(), candidate) is None
    found = worst_shortfall(Gate(bounds="auto"), candidate)
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert words in found.message
        assert found.reason is None
        sources = {
            each.source for each in bounds(Gate(bounds="auto"), candidate) if each.met is False
        }
        assert sources == {"halves"}


def test_a_bound_that_is_set_comes_before_those_by_chance_and_in_place_of_its_own(
    grown: ControlPlane,
) -> None:
    job = grown.post_dataset("two")
    first = grown.versions()[0].manifest.learned[0].dataset
    drift = {first: Drift(since_learned=1.5, against_parent=0)}
    pairs = Agreement(dataset=None, score=0.2, least=0.3)
    candidate = _by_chance(grown, job, drift=drift, agreement=pairs)
    rejected = worst_shortfall(Gate(bounds="auto", max_drift=0.1), candidate)
    assert rejected is not None
    assert rejected.reason == FailureReason.DRIFT_TOO_LARGE
    held = worst_shortfall(Gate(bounds="auto", max_drift=2), candidate)
    assert held is not None
    assert "without any relation" in held.message


@pytest.mark.parametrize("word", ["approve", "reject"])
def test_what_is_held_by_chance_is_for_a_person_to_judge(grown: ControlPlane, word: str) -> None:
    _set(grown, bounds="auto")
    job = grown.post_dataset("two")
    pairs = Agreement(dataset=None, score=0.2, least=0.3)
    candidate = _by_chance(grown, job, agreement=pairs)
    # The lineage is what the parent has, without halves.
    _rewrite(grown, candidate, report=candidate.report)
    held = grown.tick_to(job, JobState.HELD)
    assert held.message is not None
    assert held.message.startswith(
        "waits for approval (bounds: auto): the pairs of the new dataset"
    )
    response = grown.client.post(f"/v1/jobs/{job}/{word}", json={"reason": "seen"})
    assert response.status_code == 202, response.text
    assert (
        grown.run_to_end(job).state
        == {
            "approve": JobState.PUBLISHED,
            "reject": JobState.REJECTED,
        }[word]
    )


def _planted(seed: int, rows: int, shuffled: float = 0.0) -> pa.Table:
    """Pairs that come from the same three numbers; a share of them is mixed up."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=(rows, 3))
    columns = {"id": pa.array([f"{seed}-{row}" for row in range(rows)])}
    for name, width in (("feature_a", 4), ("feature_b", 3)):
        mixing = np.random.default_rng(width).normal(size=(3, width))
        side = shared @ mixing + 0.1 * random.normal(size=(rows, width))
        if name == "feature_b":
            mixed = round(shuffled * rows)
            side[:mixed] = np.roll(side[:mixed], 1, axis=0)
        values = pa.array(side.astype(np.float32).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(values, width)
    return pa.table(columns)


def test_a_dataset_whose_pairs_are_mixed_up_is_held_and_another_one_of_its_kind_is_not(
    tmp_path: Path,
) -> None:
    """From the request to the verdict, with real training."""
    plane = ControlPlane(tmp_path)
    plane.create_model(policy="improve", lift=0)
    _set(plane, bounds="auto")
    for seed, shuffled, state in (
        (1, 0.0, JobState.PUBLISHED),
        (2, 0.0, JobState.PUBLISHED),
        (3, 0.5, JobState.HELD),
    ):
        table = _planted(seed, 400, shuffled)
        job = plane.post_dataset(f"data-{seed}", shards=[plane.shard(f"data-{seed}", table)])
        found = plane.tick_to(job, JobState.RUNNING)
        train_dataset(plane.store.uri, job, found.attempt, torch.device("cpu"))
        mark_ended(plane.store, job, found.attempt)
        found = plane.tick_to(job, state)
    assert found.message is not None
    assert "the pairs of the new dataset agree by" in found.message
    assert "'data-1'" in found.message or "'data-2'" in found.message
    plane.close()


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


Asked = tuple[JobSpec, VersionManifest, VersionManifest]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """The job spec, the parent's manifest, and a valid candidate."""
    plane = ControlPlane(tmp_path_factory.mktemp("asked"))
    plane.create_model()
    plane.run_to_end(plane.post_dataset("one"))
    job = plane.post_dataset("two")
    plane.tick_to(job, JobState.RUNNING)
    candidate = train(plane.store, job, 1)
    spec = read_document(plane.store, layout.run_spec(job, 1), JobSpec)
    parent = plane.versions()[0].manifest
    plane.close()
    return spec, parent, candidate


def test_a_truthful_candidate_passes(asked: Asked) -> None:
    spec, parent, candidate = asked
    check_answers(spec, parent.learned, candidate)
    assert worst_shortfall(Gate(), candidate) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job", "job-000000000000"),
        ("attempt", 2),
        ("model", "sounds"),
        ("version", 3),
        ("parent", None),
        ("dataset", "ds-000000000000"),
        ("spec", ModelSpec(modalities={"image": 4, "text": 3})),
    ],
)
def test_an_answer_to_another_question_is_refused(asked: Asked, field: str, value: object) -> None:
    spec, parent, candidate = asked
    with pytest.raises(InvalidVersion, match=f"the candidate's {field} is"):
        check_answers(spec, parent.learned, candidate.model_copy(update={field: value}))


def test_a_lineage_without_an_earlier_dataset_is_rejected(asked: Asked) -> None:
    spec, parent, candidate = asked
    forgetful = candidate.model_copy(update={"learned": candidate.learned[1:]})
    with pytest.raises(InvalidVersion, match="learned"):
        check_answers(spec, parent.learned, forgetful)


def test_unexpected_shards_are_rejected(asked: Asked) -> None:
    spec, parent, candidate = asked
    line = candidate.learned[-1].model_copy(update={"shard_digests": ("0" * 64,)})
    other = candidate.model_copy(update={"learned": (*candidate.learned[:-1], line)})
    with pytest.raises(InvalidVersion, match="learned shards"):
        check_answers(spec, parent.learned, other)


def test_a_dataset_without_certificate_is_refused(asked: Asked) -> None:
    spec, parent, candidate = asked
    report = candidate.report.model_copy(update={"drift": {}})
    with pytest.raises(InvalidVersion, match="no certificate"):
        check_answers(spec, parent.learned, candidate.model_copy(update={"report": report}))


def test_drift_at_the_bound_is_permitted(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model(max_drift=0.5)
    plane.run_to_end(plane.post_dataset("one"))
    assert plane.run_to_end(plane.post_dataset("two"), drift=0.5).state == JobState.PUBLISHED
    plane.close()


@pytest.mark.parametrize("spec", [{"method": "vanilla"}, {"policy": "improve"}])
def test_without_a_bound_scores_may_drift(tmp_path: Path, spec: dict[str, Any]) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model(**spec)
    plane.run_to_end(plane.post_dataset("one"))
    assert plane.run_to_end(plane.post_dataset("two"), drift=7.0).state == JobState.PUBLISHED
    plane.close()


def _publish_first(plane: ControlPlane) -> str:
    """Publish a version with a recall of 0.8 and a free share of 0.7; return its dataset."""
    job = plane.post_dataset("one")
    plane.tick_to(job, JobState.RUNNING)
    made = train(plane.store, job, 1, write=False)
    line = made.learned[0].model_copy(update={"recall": _recall(0.8)})
    report = made.report.model_copy(
        update={"evaluation": {made.dataset: _recall(0.8)}, "capacity": {"image": head(0.7)}}
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
            "capacity": {"image": head(0.5), "text": head(0.9)},
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
    drift, transfer, overlap, gain, _ = _candidate(plane, job)["bounds"]
    assert (drift["permitted"], drift["found"], drift["met"]) == (0.3, 0.2, True)
    assert (transfer["permitted"], transfer["met"]) == (None, None)
    assert transfer["found"] == pytest.approx(-0.05)
    assert (overlap["permitted"], overlap["found"], overlap["met"]) == (None, 0.65, None)
    assert (gain["permitted"], gain["found"]) == (None, pytest.approx(0.5))
    # The gate may change while the candidate waits.
    plane.client.put(GATE, json={"max_drift": 0.1, "min_gain": 0.6, "manual_approval": True})
    drift, *_, gain, _ = _candidate(plane, job)["bounds"]
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
    assert [bound["met"] for bound in found["bounds"]] == [None, True, None, None, None]


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
