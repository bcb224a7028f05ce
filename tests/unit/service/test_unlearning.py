"""Jobs that read no rows: unlearning and merging."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.modality import FileEntry
from cmcl.storage import layout
from cmcl.storage.versions import read_version
from service.maintenance.gc import GarbageCollector
from tests.fakes.control_plane import ControlPlane, reopened
from tests.fakes.trainer import train

AUDIO_IMAGE = {"first": "audio", "second": "image"}


def learn(plane: ControlPlane, *names: str, model: str = "scenes", **changes: Any) -> list[str]:
    """Learn datasets one after another; return their ids."""
    learned = []
    for name in names:
        job = plane.post_dataset(name, model, **changes)
        assert plane.run_to_end(job).state == JobState.PUBLISHED
        learned.append(plane.dataset_of(job).id)
    return learned


def delete(plane: ControlPlane, path: str) -> Any:
    return plane.client.request("DELETE", path)


def unlearn(plane: ControlPlane, dataset: str, **options: str) -> Any:
    query = "".join(f"&{name}={value}" for name, value in options.items())
    return delete(plane, f"/v1/datasets/{dataset}?unlearn=true{query}")


def unlearned(plane: ControlPlane, dataset: str, **options: str) -> str:
    """Unlearn a dataset to the end; return the job."""
    response = unlearn(plane, dataset, **options)
    assert response.status_code == 202, response.text
    job: str = response.json()["id"]
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    return job


def names(plane: ControlPlane, model: str = "scenes") -> list[str]:
    return [line.name for line in plane.versions(model)[-1].manifest.learned]


def sweep(plane: ControlPlane) -> None:
    """Every task of the garbage collector, rare ones included, and no lease of an earlier round."""
    plane.clock.advance(3600)
    GarbageCollector(plane.context).sweep()


def sweep_for_days(plane: ControlPlane) -> None:
    """Until what nothing names is gone."""
    for _ in range(2):
        sweep(plane)
        plane.clock.advance(24 * 3600)
    sweep(plane)


def are_stored(plane: ControlPlane, entries: Iterable[FileEntry]) -> set[bool]:
    stored = set(plane.store.keys(layout.blobs()))
    return {layout.blob(entry.sha256) in stored for entry in entries}


def moments_of(plane: ControlPlane, dataset: str, model: str = "scenes") -> FileEntry:
    lines = (line for each in plane.versions(model) for line in each.manifest.learned)
    return next(line.moments for line in lines if line.dataset == dataset)


def test_a_learned_dataset_is_unlearned_by_a_version_without_it(plane: ControlPlane) -> None:
    first, second, third = learn(plane, "one", "two", "three")
    response = unlearn(plane, second)
    job = response.json()
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["dataset"], job["dataset_name"]) == ("unlearn", second, "two")
    assert plane.run_to_end(job["id"]).state == JobState.PUBLISHED
    assert names(plane) == ["one", "three"]
    version = plane.client.get("/v1/models/scenes/versions/4").json()
    assert (version["kind"], version["dataset"], version["dataset_name"]) == (
        "unlearn",
        None,
        "two",
    )
    assert version["manifest"]["unlearned"]["dataset"] == second
    assert plane.answering() == (4, 4)
    assert plane.client.get(f"/v1/datasets/{second}").status_code == 404
    assert {first, third} <= {
        each["id"] for each in plane.client.get("/v1/datasets").json()["items"]
    }
    # It can be learned again, as another dataset.
    assert learn(plane, "two") != [second]
    assert names(plane) == ["one", "three", "two"]


def test_it_is_asked_for_once(plane: ControlPlane) -> None:
    _, second = learn(plane, "one", "two")
    first, again = unlearn(plane, second), unlearn(plane, second)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    plane.run_to_end(first.json()["id"])
    assert unlearn(plane, second).status_code == 404


def test_it_waits_for_earlier_jobs_and_starts_from_what_they_made(plane: ControlPlane) -> None:
    learn(plane, "one")
    waiting = plane.post_dataset("two")
    plane.tick_to(waiting, JobState.RUNNING)
    job = unlearn(plane, learn_id(plane, "one")).json()
    # "one" is the only dataset now, and is not when its turn comes.
    assert job["status"] == 409
    assert "only dataset" in job["detail"]
    plane.run_to_end(waiting)
    third = plane.post_dataset("three", pair={"first": "text", "second": "image"})
    later = unlearn(plane, plane.dataset_of(waiting).id).json()["id"]
    plane.tick(3)
    assert plane.job(later).state == JobState.PREPARED
    assert plane.run_to_end(third).version == 3
    assert plane.run_to_end(later).parent_version == 3
    assert names(plane) == ["one", "three"]


def learn_id(plane: ControlPlane, name: str) -> str:
    listed = plane.client.get("/v1/datasets").json()["items"]
    return next(each["id"] for each in listed if each["name"] == name)


def test_cancelled_it_leaves_the_dataset_as_it_is(plane: ControlPlane) -> None:
    _, second = learn(plane, "one", "two")
    job = unlearn(plane, second).json()["id"]
    plane.tick_to(job, JobState.RUNNING)
    assert plane.client.post(f"/v1/jobs/{job}/cancel").status_code == 202
    assert plane.run_to_end(job).state == JobState.CANCELLED
    assert plane.client.get(f"/v1/datasets/{second}").status_code == 200
    # The same shards are still recognized.
    response = plane.client.post("/v1/datasets", json=plane.dataset_body("two"))
    assert (response.status_code, response.json()["dataset"]["id"]) == (200, second)
    plane.clock.advance(90 * 24 * 3600)
    sweep(plane)
    assert any(plane.store.keys(layout.dataset_prefix(second)))
    assert unlearned(plane, second)


def test_a_candidate_that_keeps_the_dataset_is_refused(plane: ControlPlane) -> None:
    first, second = learn(plane, "one", "two")
    job = unlearn(plane, second).json()["id"]
    running = plane.tick_to(job, JobState.RUNNING)
    before = plane.versions()[-1].manifest.learned
    train(plane.store, job, running.attempt, changes={"learned": before})
    found = plane.run_to_end(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.INVALID_CANDIDATE)
    assert first in str(found.message)


# --- Rejections -----------------------------------------------------------------------------------


def test_heads_that_were_trained_on_rows_cannot_unlearn(plane: ControlPlane) -> None:
    plane.create_model("trained", policy="preserve")
    _, second = learn(plane, "one", "two", model="trained")
    response = unlearn(plane, second)
    assert response.status_code == 409
    assert "learns by preserve" in response.json()["detail"]
    assert "branch it from version 1" in response.json()["detail"]


def test_the_first_dataset_of_a_modality_can_be_unlearned(plane: ControlPlane) -> None:
    (first,) = learn(plane, "one")
    learn(plane, "two", pair=AUDIO_IMAGE)
    unlearned(plane, first)
    assert names(plane) == ["two"]


def test_what_was_not_learned_cannot_be_unlearned(plane: ControlPlane) -> None:
    learn(plane, "one")
    waiting = plane.dataset_of(plane.post_dataset("two")).id
    response = unlearn(plane, waiting)
    assert response.status_code == 409
    assert "has not learned" in response.json()["detail"]
    assert unlearn(plane, "ds-000000000000").status_code == 404
    assert unlearn(plane, learn_id(plane, "one"), model="scenes2").status_code == 404
    response = delete(plane, f"/v1/datasets/{waiting}?model=scenes")
    assert response.status_code == 422


def test_an_earlier_job_may_change_what_can_be_unlearned(plane: ControlPlane) -> None:
    first, second = learn(plane, "one", "two")
    jobs = [unlearn(plane, each).json()["id"] for each in (first, second)]
    found = [plane.run_to_end(job) for job in jobs]
    assert found[0].state == JobState.PUBLISHED
    assert (found[1].state, found[1].reason) == (JobState.FAILED, FailureReason.CANNOT_COMBINE)
    assert "'two' is the only dataset" in str(found[1].message)


# --- Afterwards ---------------------------------------------------------------------------------


def test_what_was_unlearned_is_gone_after_the_grace_period(plane: ControlPlane) -> None:
    first, second, third = learn(plane, "one", "two", "three")
    unlearned(plane, second)
    sweep(plane)
    assert any(plane.store.keys(layout.dataset_prefix(second)))
    for number in (2, 3):
        assert delete(plane, f"/v1/models/scenes/versions/{number}").status_code == 204
    plane.tick(3)
    # One round gives the versions up, and the next one what only they needed.
    sweep(plane)
    sweep(plane)
    assert not any(plane.store.keys(layout.dataset_prefix(second)))
    sweep_for_days(plane)
    for number in (2, 3):
        assert are_stored(plane, read_version(plane.store, "scenes", number).files.values()) == {
            False
        }
    for number in (1, 4):
        assert are_stored(plane, read_version(plane.store, "scenes", number).files.values()) == {
            True
        }
    assert are_stored(plane, [moments_of(plane, second)]) == {False}
    assert are_stored(plane, [moments_of(plane, each) for each in (first, third)]) == {True}
    learn(plane, "four")


def test_a_branch_keeps_what_it_has_learned_until_it_unlearns_it(plane: ControlPlane) -> None:
    _, second = learn(plane, "one", "two")
    body = {"name": "branch", "version": 2}
    assert plane.client.post("/v1/models/scenes/branch", json=body).status_code == 201
    plane.tick(4)
    unlearned(plane, second)
    delete(plane, "/v1/models/scenes/versions/2")
    plane.tick(3)
    sweep_for_days(plane)
    kept = plane.versions("branch")[-1].manifest
    assert are_stored(plane, [*kept.files.values(), moments_of(plane, second, "branch")]) == {True}
    assert names(plane, "branch") == ["one", "two"]
    unlearned(plane, second, model="branch")
    assert names(plane, "branch") == ["one"]
    delete(plane, "/v1/models/branch/versions/2")
    plane.tick(3)
    sweep_for_days(plane)
    assert not any(plane.store.keys(layout.dataset_prefix(second)))
    assert are_stored(plane, kept.files.values()) == {False}
    assert are_stored(plane, [moments_of(plane, second)]) == {False}


def test_unlearned_from_a_branch_it_stays_a_dataset_of_its_model(plane: ControlPlane) -> None:
    _, second = learn(plane, "one", "two")
    plane.client.post("/v1/models/scenes/branch", json={"name": "branch", "version": 2})
    plane.tick(4)
    unlearned(plane, second, model="branch")
    assert plane.client.get(f"/v1/datasets/{second}").status_code == 200
    assert names(plane) == ["one", "two"]


@pytest.fixture(scope="module")
def branched_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branched")
    plane = ControlPlane(folder)
    plane.create_model()
    learn(plane, "one")
    body = {"name": "site", "version": 1}
    assert plane.client.post("/v1/models/scenes/branch", json=body).status_code == 201
    plane.tick(3)
    learn(plane, "two")
    learn(plane, "three", model="site")
    plane.close()
    return folder


@pytest.fixture
def branched(branched_folder: Path, tmp_path: Path) -> Iterator[ControlPlane]:
    """`scenes` has learned one and two; its branch `site` three as well."""
    with reopened(branched_folder, tmp_path) as plane:
        yield plane


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


def test_a_modality_of_the_other_model_alone_is_taken_over(branched: ControlPlane) -> None:
    learn(branched, "six", model="site", pair=AUDIO_IMAGE)
    merged(branched, "site@3")
    assert names(branched) == ["one", "two", "three", "six"]


# --- Rejections -----------------------------------------------------------------------------------


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
