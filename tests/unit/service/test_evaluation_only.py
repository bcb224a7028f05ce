"""Datasets that are measured and never learned: posted, measured at once and with every later version, and deleted."""

from typing import Any

import pytest

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.job import JobSpec, submission_id
from cmcl.contract.version import EvaluationResult
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.running import mark_ended
from service.database.rows import JobRow
from service.launchers.port import LaunchState
from service.maintenance.gc import GarbageCollector
from tests.fakes.control_plane import ControlPlane
from tests.fakes.preparer import identity, manifest_of, requests_in, write_manifest
from tests.fakes.trainer import evaluate, train

IMAGE_AUDIO = {"first": "image", "second": "audio"}


def measure(plane: ControlPlane, name: str = "views", **changes: Any) -> str:
    """Post a dataset that is measured only; the id of its job."""
    return plane.post_dataset(name, evaluate_only=True, **changes)


def spec_of(plane: ControlPlane, job: JobRow) -> JobSpec:
    return read_document(plane.store, layout.run_spec(job.id, job.attempt), JobSpec)


def listed(plane: ControlPlane, job: JobRow) -> list[str]:
    """Names of the datasets that the attempt measures besides those of its version."""
    return [each.name for each in spec_of(plane, job).evaluation_only]


def test_the_live_version_is_measured_at_once_and_no_version_is_made(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    job = measure(plane, pair=IMAGE_AUDIO)
    running = plane.tick_to(job, JobState.RUNNING)
    spec = spec_of(plane, running)
    assert (spec.kind, spec.version, spec.learns.rows) == ("evaluate", 1, 0)
    assert spec.learns.evaluation_rows == 16
    ended = plane.run_to_end(job)
    assert (ended.state, ended.kind, ended.version) == (JobState.EVALUATED, "evaluate", None)
    assert ended.evaluation is not None
    assert (ended.evaluation.version, ended.evaluation.recall.at_1) == (1, 0.5)  # type: ignore[union-attr]
    assert len(plane.versions()) == 1
    assert plane.answering() == (1, 1)
    seen = plane.client.get(f"/v1/jobs/{job}").json()
    assert seen["evaluation"]["recall"]["at_10"] == 0.7
    dataset = plane.client.get(f"/v1/datasets/{ended.dataset}").json()
    assert (dataset["evaluate_only"], dataset["rows"], dataset["evaluation_rows"]) == (True, 0, 16)
    assert dataset["evaluation"] == seen["evaluation"]
    (measured,) = plane.client.get("/v1/models/scenes/versions/1").json()["evaluation_only"]
    assert (measured["name"], measured["pair"], measured["note"]) == ("views", IMAGE_AUDIO, None)
    assert measured["recall"] == seen["evaluation"]["recall"]
    history = plane.client.get("/v1/models/scenes/versions?by_dataset=true").json()["items"][0]
    assert history["by_dataset"]["evaluation_only"] == {ended.dataset: 0.5}


def test_every_later_version_is_measured_too(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    plane.run_to_end(measure(plane))
    second = plane.run_to_end(plane.post_dataset("two"))
    assert listed(plane, second) == ["views"]
    seen = plane.client.get("/v1/models/scenes/versions/2").json()
    (found,) = seen["evaluation_only"]
    assert (found["name"], found["recall"]["at_1"], found["note"]) == ("views", 0.6, None)
    assert seen["evaluation_matrix"][-1]["recall"] == {}, "it is no dataset of the version"
    history = plane.client.get("/v1/models/scenes/versions?by_dataset=true").json()["items"][-1]
    assert history["by_dataset"]["evaluation_only"] == {found["dataset"]: 0.6}
    (before,) = plane.client.get("/v1/models/scenes/versions/1").json()["evaluation_only"]
    assert before["recall"]["at_1"] == 0.5
    assert history["mean_recall"] is None
    newest = plane.client.get(f"/v1/datasets/{found['dataset']}").json()["evaluation"]
    assert (newest["version"], newest["recall"]["at_1"]) == (2, 0.6)


def test_without_a_live_version_it_waits_for_later_ones(plane: ControlPlane) -> None:
    ended = plane.run_to_end(measure(plane))
    assert (ended.state, ended.attempt) == (JobState.EVALUATED, 0)
    assert ended.evaluation == EvaluationResult(version=None, note=ended.message)
    assert str(ended.message).startswith("the model has no live version yet")
    assert listed(plane, plane.run_to_end(plane.post_dataset("one"))) == ["views"]


def test_it_waits_for_no_dataset_to_learn_and_for_no_approval(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    gate = {"manual_approval": True}
    plane.client.put("/v1/models/scenes/gate", json=gate)
    held = plane.post_dataset("two")
    train(plane.store, held, plane.tick_to(held, JobState.RUNNING).attempt)
    plane.tick_to(held, JobState.HELD)
    waiting = plane.post_dataset("three")
    plane.tick_to(waiting, JobState.PREPARED)
    assert plane.run_to_end(measure(plane)).state == JobState.EVALUATED
    assert plane.job(held).state == JobState.HELD
    assert plane.job(waiting).state == JobState.PREPARED


def test_a_lost_attempt_is_repeated_and_a_failure_can_be_retried(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    job = measure(plane)
    running = plane.tick_to(job, JobState.RUNNING)
    plane.launcher.end(submission_id(running.id, running.attempt), LaunchState.FAILED)
    plane.tick(3)
    again = plane.tick_to(job, JobState.RUNNING)
    assert again.attempt == 2
    plane.store.put(layout.run_evaluation(job, 2), b"{}")
    mark_ended(plane.store, job, 2)
    plane.tick(3)
    failed = plane.job(job)
    assert (failed.state, failed.reason) == (JobState.FAILED, FailureReason.INVALID_CANDIDATE)
    assert listed(plane, plane.run_to_end(plane.post_dataset("two"))) == []
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    assert plane.run_to_end(job).state == JobState.EVALUATED


def test_a_deleted_one_is_measured_no_more_and_its_rows_are_removed(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    ended = plane.run_to_end(measure(plane))
    folder = layout.dataset_prefix(str(ended.dataset))
    plane.clock.advance(400 * 86_400)
    GarbageCollector(plane.context).sweep()
    assert any("evaluation-" in key for key in plane.store.keys(folder)), "runs are old, rows stay"
    assert plane.client.request("DELETE", f"/v1/datasets/{ended.dataset}").status_code == 204
    assert listed(plane, plane.run_to_end(plane.post_dataset("two"))) == []
    # The first round of an instance lists the store. By then, the lease of the other one has expired.
    plane.clock.advance(3600)
    GarbageCollector(plane.context).sweep()
    assert list(plane.store.keys(folder)) == []


def test_a_branch_inherits_what_was_posted_before_it(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    plane.run_to_end(measure(plane))
    body = {"name": "trial", "version": 1}
    assert plane.client.post("/v1/models/scenes/branch", json=body).status_code == 201
    plane.run_to_end(measure(plane, "later"))
    own = plane.run_to_end(measure(plane, "own", model="trial"))
    branch = plane.run_to_end(plane.post_dataset("two", "trial"))
    assert listed(plane, branch) == ["views", "own"]
    assert listed(plane, plane.run_to_end(plane.post_dataset("two"))) == ["views", "later"]
    assert plane.client.request("DELETE", f"/v1/datasets/{own.dataset}").status_code == 204
    assert listed(plane, plane.run_to_end(plane.post_dataset("three", "trial"))) == ["views"]


def test_its_encoders_are_checked_and_decide_nothing(plane: ControlPlane) -> None:
    plane.preparer = lambda _: None
    job = measure(plane)
    plane.tick(2)
    (request,) = requests_in(plane.store)
    assert (request.evaluate_only, request.identities) == (True, {})
    write_manifest(plane.store, manifest_of(plane.store, request, image=identity("clip-1")))
    assert plane.run_to_end(job).state == JobState.EVALUATED
    assert plane.model().encoders == {}
    learned = plane.post_dataset("one")
    plane.tick(2)
    (request,) = requests_in(plane.store)
    write_manifest(plane.store, manifest_of(plane.store, request, image=identity("clip-2")))
    plane.run_to_end(learned)
    other = measure(plane, "other")
    plane.tick(2)
    (request,) = requests_in(plane.store)
    write_manifest(plane.store, manifest_of(plane.store, request, image=identity("clip-1")))
    ended = plane.run_to_end(other)
    assert (ended.state, ended.reason) == (JobState.FAILED, FailureReason.ENCODER_MISMATCH)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"evaluation_share": 0.1}, "evaluation_share"),
        ({"dry_run": True}, "dry_run"),
        ({"evaluation_shards": [{"uri": "file:///elsewhere.parquet"}]}, "evaluation_shards"),
        ({"pair": {"first": "image", "second": "smell"}}, "pair.second"),
    ],
)
def test_options_that_contradict_it_are_named(
    plane: ControlPlane, changes: dict[str, Any], field: str
) -> None:
    body = plane.dataset_body("one", evaluate_only=True, **changes)
    response = plane.client.post("/v1/datasets", json=body)
    assert response.status_code == 422
    assert field in [each["field"] for each in response.json()["errors"]]


def test_the_same_files_may_be_learned_beside(plane: ControlPlane) -> None:
    shards = [plane.shard("same")]
    measured = plane.run_to_end(measure(plane, shards=shards))
    again = plane.client.post(
        "/v1/datasets", json=plane.dataset_body("views", evaluate_only=True, shards=shards)
    )
    assert (again.status_code, again.json()["job"]["id"]) == (200, measured.id)
    learned = plane.run_to_end(plane.post_dataset("one", shards=shards))
    assert learned.state == JobState.PUBLISHED


def test_an_open_dataset_stays_measured_only(plane: ControlPlane) -> None:
    body = plane.dataset_body("views", evaluate_only=True, sealed=False)
    dataset = plane.client.post("/v1/datasets", json=body).json()["dataset"]["id"]
    held = {"evaluation_shards": [plane.shard("held")]}
    refused = plane.client.post(f"/v1/datasets/{dataset}/shards", json=held)
    assert refused.status_code == 422
    sealed = plane.client.post(f"/v1/datasets/{dataset}/seal").json()
    assert sealed["job"]["kind"] == "evaluate"
    assert plane.run_to_end(sealed["job"]["id"]).state == JobState.EVALUATED


def test_a_result_without_recall_is_a_result(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    job = measure(plane)
    running = plane.tick_to(job, JobState.RUNNING)
    note = "version 1 has not learned 'audio'"
    evaluate(plane.store, job, running.attempt, recall=None, note=note)
    plane.tick(2)
    assert (plane.job(job).state, plane.job(job).message) == (JobState.EVALUATED, note)
