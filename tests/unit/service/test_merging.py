"""POST of a merge: a job that adds the datasets of another model's version, and reads no rows."""

from typing import Any

import pytest

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.storage import layout
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.unit.service.test_unlearning import (
    AUDIO_IMAGE,
    are_stored,
    delete,
    learn,
    moments_of,
    names,
    sweep_for_days,
    unlearned,
)


@pytest.fixture
def branched(plane: ControlPlane) -> ControlPlane:
    """`scenes` has learned one and two; its branch `site` three as well."""
    learn(plane, "one")
    body = {"name": "site", "version": 1}
    assert plane.client.post("/v1/models/scenes/branch", json=body).status_code == 201
    plane.tick(3)
    learn(plane, "two")
    learn(plane, "three", model="site")
    return plane


def merge(plane: ControlPlane, source: str, model: str = "scenes") -> Any:
    return plane.client.post(f"/v1/models/{model}/merge", json={"from": source})


def merged(plane: ControlPlane, source: str, model: str = "scenes") -> str:
    response = merge(plane, source, model)
    assert response.status_code == 202, response.text
    job: str = response.json()["id"]
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    return job


def test_merged_it_has_learned_what_both_have(branched: ControlPlane) -> None:
    response = merge(branched, "site@2")
    job = response.json()
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["dataset"], job["dataset_name"]) == ("merge", None, "site@2")
    assert job["merges"] == {"model": "site", "version": 2}
    assert branched.run_to_end(job["id"]).state == JobState.PUBLISHED
    assert names(branched) == ["one", "two", "three"]
    version = branched.client.get("/v1/models/scenes/versions/3").json()
    assert (version["kind"], version["dataset"], version["dataset_name"]) == (
        "merge",
        None,
        "site@2",
    )
    assert version["manifest"]["merged"] == {"model": "site", "version": 2}
    assert [line["version"] for line in version["lineage"]] == [1, 2, 3]
    assert names(branched, "site") == ["one", "three"]
    learn(branched, "four")
    assert names(branched) == ["one", "two", "three", "four"]


def test_it_is_asked_for_once_and_again_with_an_idempotency_key(branched: ControlPlane) -> None:
    first, again = merge(branched, "site@2"), merge(branched, "site@2")
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    branched.run_to_end(first.json()["id"])
    assert merge(branched, "site@2").status_code == 409


def test_what_was_merged_can_be_unlearned(branched: ControlPlane) -> None:
    merged(branched, "site@2")
    three = branched.versions()[-1].manifest.learned[-1].dataset
    unlearned(branched, three, model="scenes")
    assert names(branched) == ["one", "two"]
    assert names(branched, "site") == ["one", "three"]


@pytest.mark.parametrize("is_unlearned_first", [False, True])
def test_what_was_merged_outlives_the_other_model_as_long_as_a_version_with_it_can_be_branched(
    branched: ControlPlane, is_unlearned_first: bool
) -> None:
    merged(branched, "site@2")
    three = branched.versions()[-1].manifest.learned[-1].dataset
    if is_unlearned_first:
        unlearned(branched, three, model="scenes")
    assert delete(branched, "/v1/models/site").status_code == 204
    moments = moments_of(branched, three, "scenes")
    sweep_for_days(branched)
    assert not any(branched.store.keys("models/site/"))
    assert are_stored(branched, [moments]) == {True}
    if not is_unlearned_first:
        unlearned(branched, three, model="scenes")
    delete(branched, "/v1/models/scenes/versions/3")
    branched.tick(3)
    sweep_for_days(branched)
    assert not any(branched.store.keys(layout.dataset_prefix(three)))
    assert are_stored(branched, [moments]) == {False}


def test_a_candidate_with_other_lines_is_refused(branched: ControlPlane) -> None:
    job = merge(branched, "site@2").json()["id"]
    running = branched.tick_to(job, JobState.RUNNING)
    before = branched.versions()[-1].manifest.learned
    train(branched.store, job, running.attempt, changes={"learned": before})
    found = branched.run_to_end(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.INVALID_CANDIDATE)
    retried = branched.client.post(f"/v1/jobs/{job}/retry")
    assert retried.status_code == 202
    assert branched.run_to_end(job).state == JobState.PUBLISHED


def test_what_the_other_model_loses_meanwhile_fails_the_job(branched: ControlPlane) -> None:
    waiting = branched.post_dataset("four")
    job = merge(branched, "site@2").json()["id"]
    assert delete(branched, "/v1/models/site").status_code == 204
    branched.run_to_end(waiting)
    found = branched.run_to_end(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.CANNOT_COMBINE)
    assert "deleted" in str(found.message)


def test_models_without_a_common_dataset_are_merged(branched: ControlPlane) -> None:
    branched.create_model("apart")
    learn(branched, "five", model="apart")
    merged(branched, "apart@1")
    assert names(branched) == ["one", "two", "five"]


def test_a_modality_of_the_other_model_alone_is_taken_over(branched: ControlPlane) -> None:
    learn(branched, "six", model="site", pair=AUDIO_IMAGE)
    merged(branched, "site@3")
    assert names(branched) == ["one", "two", "three", "six"]


# --- Refusals -----------------------------------------------------------------------------------


def test_specifications_that_differ_are_named(branched: ControlPlane) -> None:
    branched.create_model("wide", width=16, lift=8)
    learn(branched, "five", model="wide")
    response = merge(branched, "wide@1")
    assert response.status_code == 409
    assert {problem["field"] for problem in response.json()["errors"]} == {"width", "lift"}


def test_a_modality_that_only_the_other_model_was_given_must_be_added(
    branched: ControlPlane,
) -> None:
    for name in ("site", "scenes"):
        path = f"/v1/models/{name}/modalities/depth"
        assert branched.client.put(path, json={"width": 3}).status_code == 200
        if name == "site":
            learn(branched, "six", model="site", pair={"first": "depth", "second": "text"})
            response = merge(branched, "site@3")
            assert response.status_code == 409
            assert "PUT /v1/models/scenes/modalities/depth" in response.json()["detail"]
    merged(branched, "site@3")
    assert names(branched) == ["one", "two", "three", "six"]


def test_heads_that_were_trained_on_rows_are_not_merged(plane: ControlPlane) -> None:
    for name in ("a-model", "another"):
        plane.create_model(name, policy="preserve")
        learn(plane, "one", model=name)
    response = merge(plane, "another@1", "a-model")
    assert response.status_code == 409
    assert "learns by preserve" in response.json()["detail"]


def test_what_is_not_there_or_adds_nothing_is_refused(branched: ControlPlane) -> None:
    assert merge(branched, "site@9").status_code == 404
    assert merge(branched, "nothing@1").status_code == 404
    assert merge(branched, "site@1").status_code == 409
    assert merge(branched, "scenes@1").status_code == 409
    for malformed in ("site", "site@", "site@0", "@1", "Site@1", "site@latest"):
        assert merge(branched, malformed).status_code == 422
    branched.create_model("empty")
    response = merge(branched, "site@2", "empty")
    assert response.status_code == 409
    assert "branch 'site'" in response.json()["detail"]


def test_what_was_unlearned_does_not_come_back_by_a_merge(branched: ControlPlane) -> None:
    learn(branched, "four")
    body = {"name": "late", "version": 3}
    branched.client.post("/v1/models/scenes/branch", json=body)
    branched.tick(4)
    four = branched.versions()[-1].manifest.learned[-1].dataset
    unlearned(branched, four)
    response = merge(branched, "late@3")
    assert response.status_code == 409
    assert "was unlearned" in response.json()["detail"]
