"""Branches, promotions, modalities and methods of models."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.job import JobSpec, submission_id
from cmcl.contract.version import LivePointer
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.versions import read_live, read_version, read_version_file, write_live
from service.database.queries import versions
from service.maintenance.gc import GarbageCollector
from service.registry import models
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.feature_shards import feature_table
from tests.fakes.outside_method import MODULE, NAME, installed
from tests.fakes.trainer import leave_checkpoint, train
from tests.fakes.versions import stored_key


def _branch(plane: ControlPlane, version: int = 2, name: str = "fork") -> int:
    body = {"name": name, "version": version}
    return plane.client.post("/v1/models/scenes/branch", json=body).status_code


def test_a_branch_has_every_version_up_to_its_point(three: ControlPlane) -> None:
    assert _branch(three) == 201
    three.tick(5)
    assert [version.number for version in three.versions("fork")] == [1, 2]
    for number in (1, 2):
        manifest = read_version(three.store, "fork", number)
        source = read_version(three.store, "scenes", number)
        assert manifest == source.model_copy(update={"model": "fork", "copied_from": "scenes"})
        for name in manifest.files:
            assert read_version_file(three.store, manifest, name) == read_version_file(
                three.store, source, name
            )
    pointer = read_live(three.store, "fork")
    assert pointer is not None
    assert pointer.version == 2


def bytes_stored(plane: ControlPlane) -> int:
    """Of all versions, without their manifests."""
    return sum(map(plane.store.size, plane.store.keys(layout.blobs())))


def test_a_long_matrix_has_rows_that_are_evenly_spaced_and_the_last_one(
    three: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "MOST_EVALUATIONS", 2)
    for version, rows in ((1, [1]), (2, [1, 2]), (3, [1, 3])):
        view = three.client.get(f"/v1/models/scenes/versions/{version}").json()
        assert [row["version"] for row in view["evaluation_matrix"]] == rows


def test_branches_of_a_model_can_be_listed(three: ControlPlane) -> None:
    three.create_model("other")
    assert (_branch(three), _branch(three, name="second")) == (201, 201)
    listed = three.client.get("/v1/models?branched_from=scenes").json()["items"]
    assert [model["name"] for model in listed] == ["fork", "second"]
    assert three.client.get("/v1/models?branched_from=other").json()["items"] == []


def test_a_branch_adds_no_bytes_of_heads_to_the_store(three: ControlPlane) -> None:
    three.tick(5)
    before = bytes_stored(three)
    assert _branch(three, 3) == 201
    three.tick(5)
    body = {"name": "twig", "version": 2}
    assert three.client.post("/v1/models/fork/branch", json=body).status_code == 201
    three.tick(5)
    assert bytes_stored(three) == before
    twig = read_version(three.store, "twig", 2)
    assert read_version_file(three.store, twig, layout.HEADS)
    # The model whose job made it, and not the branch in between.
    assert twig.copied_from == "scenes"


def test_a_branch_of_a_branch_outlives_both(three: ControlPlane) -> None:
    assert _branch(three) == 201
    three.tick(5)
    body = {"name": "twig", "version": 2}
    assert three.client.post("/v1/models/fork/branch", json=body).status_code == 201
    three.tick(5)
    for name in ("fork", "scenes"):
        assert three.client.request("DELETE", f"/v1/models/{name}").status_code == 204
    three.clock.advance(2 * 3600)
    GarbageCollector(three.context).sweep()
    assert list(three.store.keys("models/fork/")) == []
    twig = read_version(three.store, "twig", 2)
    for name in twig.files:
        assert read_version_file(three.store, twig, name)


def restarted(plane: ControlPlane, heads_bytes_max: int) -> ControlPlane:
    """The same control plane with another limit."""
    plane.close()
    return ControlPlane(plane.folder, plane.launcher, plane.clock, heads_bytes_max=heads_bytes_max)


def test_a_model_whose_heads_no_replica_could_hold_is_refused_with_sizes(
    plane: ControlPlane,
) -> None:
    widths = {"image": 16384, "text": 16384}
    body = {"name": "wide", "width": 4096, "modalities": widths, "lift": 0}
    answer = plane.client.post("/v1/models", json=body)
    # Weights with the bias, and a mean with its scale for each modality.
    size = 4 * 2 * (4096 * 16385 + 16384 + 1)
    assert answer.status_code == 422
    for part in (f"{size} bytes", "512 MiB", "CMCL_HEADS_BYTES_MAX"):
        assert part in answer.json()["errors"][0]["message"]


def test_a_branch_and_a_dataset_above_a_limit_that_was_lowered_are_refused(
    three: ControlPlane,
) -> None:
    lowered = restarted(three, 100)
    try:
        answer = lowered.client.post(
            "/v1/models/scenes/branch", json={"name": "fork", "version": 1}
        )
        assert answer.status_code == 422
        assert "permitted are 100 " in answer.text
        ended = lowered.run_to_end(lowered.post_dataset("four"))
        assert (ended.state, ended.reason) == (JobState.FAILED, FailureReason.HEADS_TOO_LARGE)
        assert ended.attempt == 0
    finally:
        lowered.close()


def test_a_candidate_above_a_limit_that_was_lowered_while_it_trained_is_not_published(
    three: ControlPlane,
) -> None:
    job = three.post_dataset("four")
    attempt = three.tick_to(job, JobState.RUNNING).attempt
    train(three.store, job, attempt)
    three.tick_to(job, JobState.GATING)
    lowered = restarted(three, 1)
    try:
        lowered.tick(2)
        assert lowered.job(job).reason == FailureReason.HEADS_TOO_LARGE
        assert lowered.model().head == 3
    finally:
        lowered.close()


def test_a_branch_of_more_versions_than_are_read_at_once_has_all_of_them(
    three: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_PAGE", 2)
    assert _branch(three, version=3) == 201
    three.tick(5)
    assert [version.number for version in three.versions("fork")] == [1, 2, 3]


def test_a_branch_and_its_source_go_their_own_ways(three: ControlPlane) -> None:
    _branch(three)
    three.tick(5)
    ended = three.run_to_end(three.post_dataset("four", "fork"))
    assert (ended.state, ended.parent_version, ended.version) == (JobState.PUBLISHED, 2, 3)
    names = [line.name for line in three.versions("fork")[-1].manifest.learned]
    assert names == ["one", "two", "four"]
    assert three.model().head == 3


def test_the_same_branch_again_is_the_same_model(three: ControlPlane) -> None:
    assert (_branch(three), _branch(three)) == (201, 201)
    assert _branch(three, version=1) == 409
    assert _branch(three, name="scenes") == 409
    assert len(three.client.get("/v1/models").json()["items"]) == 2


def test_a_branch_needs_a_version_that_is_there(three: ControlPlane) -> None:
    assert _branch(three, version=4) == 404
    assert three.client.get("/v1/models/fork").status_code == 404


def test_what_was_retired_does_not_answer_in_a_branch(three: ControlPlane) -> None:
    assert three.client.request("DELETE", "/v1/models/scenes/versions/1").status_code == 204
    assert _branch(three, version=1) == 409
    assert _branch(three, version=2) == 201
    three.tick(5)
    first, second = three.versions("fork")
    assert first.retired_at is not None
    assert second.stored_at is not None
    history = three.client.get("/v1/models/fork/promotions").json()["items"]
    assert [promotion["version"] for promotion in history] == [2]
    assert three.client.put("/v1/models/fork/live", json={"version": 1}).status_code == 409


def test_roll_back_returns_to_what_was_promoted_before(three: ControlPlane) -> None:
    live = three.client.put("/v1/models/scenes/live", json={"version": 1}).json()["version"]
    found = [live]
    for _ in range(3):
        answer = three.client.post("/v1/models/scenes/rollback", json={"reason": "worse"})
        found.append(answer.json()["version"])
    # One was promoted over three, which had been published over two, over one.
    assert found == [1, 3, 2, 1]
    assert three.client.post("/v1/models/scenes/rollback", json={}).status_code == 409
    three.tick(2)
    assert three.answering() == (7, 1)


def test_live_is_not_moved_unseen(three: ControlPlane) -> None:
    tag = three.client.get("/v1/models/scenes/live").headers["ETag"]
    for path, body in (("live", {"version": 1}), ("rollback", {})):
        method = "PUT" if path == "live" else "POST"
        first = three.client.request(
            method, f"/v1/models/scenes/{path}", json=body, headers={"If-Match": '"1"'}
        )
        assert first.status_code == 412
    moved = three.client.put(
        "/v1/models/scenes/live", json={"version": 1}, headers={"If-Match": tag}
    )
    assert moved.status_code == 200
    assert moved.headers["ETag"] != tag


def test_a_retired_version_stops_serving(three: ControlPlane) -> None:
    assert three.client.request("DELETE", "/v1/models/scenes/versions/1").status_code == 204
    assert three.client.put("/v1/models/scenes/live", json={"version": 1}).status_code == 409
    assert three.client.get("/v1/models/scenes/versions/1").json()["retired_at"] is not None
    # What later versions are measured against stays.
    assert three.store.size(stored_key(three.store, "scenes", 1, layout.HEADS)) > 0
    assert three.run_to_end(three.post_dataset("four")).state == JobState.PUBLISHED


@pytest.mark.parametrize("version", [2, 3])
def test_newest_and_live_versions_cannot_be_retired(three: ControlPlane, version: int) -> None:
    three.client.put("/v1/models/scenes/live", json={"version": 2})
    path = f"/v1/models/scenes/versions/{version}"
    assert three.client.request("DELETE", path).status_code == 409


def test_a_deleted_model_is_not_there(three: ControlPlane) -> None:
    waiting = three.post_dataset("four")
    assert three.client.request("DELETE", "/v1/models/scenes").status_code == 409
    three.client.post(f"/v1/jobs/{waiting}/cancel")
    assert three.client.request("DELETE", "/v1/models/scenes").status_code == 204
    assert three.client.get("/v1/models/scenes").status_code == 404
    assert three.client.get("/v1/models").json()["items"] == []
    assert three.client.post("/v1/datasets", json=three.dataset_body("five")).status_code == 404


def test_the_name_of_a_deleted_model_is_not_given_again(three: ControlPlane) -> None:
    three.client.request("DELETE", "/v1/models/scenes")
    body = {"name": "scenes", "modalities": {"image": 4, "text": 3}}
    assert three.client.post("/v1/models", json=body).status_code == 409


def test_a_version_has_all_its_fields(three: ControlPlane) -> None:
    view = three.client.get("/v1/models/scenes/versions/2").json()
    assert [row["version"] for row in view["evaluation_matrix"]] == [1, 2]
    assert [line["name"] for line in view["lineage"]] == ["one", "two"]
    assert all(len(digest) == 64 for line in view["lineage"] for digest in line["shard_digests"])
    assert set(view["certificate"]["drift"]) == {view["lineage"][0]["dataset"]}


def _choose(plane: ControlPlane, version: int) -> dict[str, int]:
    response = plane.client.put("/v1/models/scenes/live", json={"version": version})
    assert response.status_code == 200, response.text
    answer: dict[str, int] = response.json()
    return answer


def test_choosing_the_live_version_changes_nothing(two: ControlPlane) -> None:
    assert _choose(two, 2) == {"version": 2, "generation": 2}
    items = two.client.get("/v1/models/scenes/promotions").json()["items"]
    assert len(items) == 2


def test_a_new_version_goes_live_after_a_roll_back(two: ControlPlane) -> None:
    _choose(two, 1)
    two.run_to_end(two.post_dataset("three"))
    assert two.answering() == (4, 3)


def test_the_history_has_actor_and_reason(two: ControlPlane) -> None:
    body = {"version": 1, "reason": "worse on emoji"}
    two.client.put("/v1/models/scenes/live", json=body)
    items = two.client.get("/v1/models/scenes/promotions").json()["items"]
    found = [(i["generation"], i["version"], i["previous"], i["actor"]) for i in items]
    assert found == [(1, 1, None, "reconciler"), (2, 2, 1, "reconciler"), (3, 1, 2, "local")]
    assert items[2]["reason"] == "worse on emoji"


def test_an_unknown_version_is_not_found(two: ControlPlane) -> None:
    response = two.client.put("/v1/models/scenes/live", json={"version": 9})
    assert response.status_code == 404
    assert "permitted: 1 to 2" in response.json()["errors"][0]["message"]


def test_a_version_that_is_being_stored_neither_goes_live_nor_is_branched_or_merged(
    two: ControlPlane,
) -> None:
    assert _branch(two, version=1) == 201
    two.tick(3)
    with two.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE versions SET stored_at = NULL WHERE model = 'scenes'")
    for method, path, body in (
        ("PUT", "scenes/live", {"version": 1}),
        ("POST", "scenes/branch", {"name": "late", "version": 2}),
        ("POST", "fork/merge", {"from": "scenes@2"}),
    ):
        response = two.client.request(method, f"/v1/models/{path}", json=body)
        assert (response.status_code, "being stored" in response.text) == (409, True), path


@pytest.mark.parametrize("damage", ["missing", "garbled", "behind"])
def test_a_restart_repairs_the_pointer(two: ControlPlane, damage: str) -> None:
    store, key = two.store, layout.live_pointer("scenes")
    if damage == "missing":
        store.delete(key)
    elif damage == "garbled":
        store.put(key, b"{}")
    else:
        write_live(store, "scenes", LivePointer(generation=1, version=1))
    successor = ControlPlane(two.folder, two.launcher, two.clock)
    successor.tick(2)
    assert two.answering() == (2, 2)
    successor.close()


def test_before_the_first_version_none_is_live(plane: ControlPlane) -> None:
    response = plane.client.get("/v1/models/scenes/live")
    assert response.status_code == 404
    assert "no live version yet" in response.json()["detail"]


PLACE = "/v1/models/scenes/modalities/"
TEXT_DEPTH = {"first": "text", "second": "depth"}


def add(plane: ControlPlane, name: str = "depth", **body: Any) -> httpx.Response:
    return plane.client.put(f"{PLACE}{name}", json=body or {"width": 5})


def depths(plane: ControlPlane) -> list[dict[str, str]]:
    """A shard of pairs text, depth."""
    return [plane.shard("depths", feature_table(16, widths=(3, 5), prefix="d"))]


def test_a_dataset_may_use_a_modality_that_was_added(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    added = add(plane).json()
    assert added["modalities"]["depth"] == {"width": 5, "encoder": None}
    job = plane.post_dataset("two", pair=TEXT_DEPTH, shards=depths(plane))
    assert plane.run_to_end(job).version == 2
    first, second = (version.manifest.spec for version in plane.versions())
    assert set(second.modalities) - set(first.modalities) == {"depth"}
    (event,) = [
        each
        for each in plane.client.get("/v1/events?limit=200").json()["items"]
        if each["kind"] == "model.modality"
    ]
    assert event["details"]["modality"] == "depth"


def test_the_same_again_changes_nothing_and_another_width_is_refused(plane: ControlPlane) -> None:
    assert add(plane).json() == add(plane).json()
    refused = add(plane, width=6)
    assert refused.status_code == 409
    assert "has the modality 'depth' with width 5 and no encoder" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("depth", {"width": 0}, 422),
        ("depth", {"encoder": "none-of-that-name"}, 422),
        ("depth", {"encoder": None}, 422),
        ("Depth!", {"width": 4}, 422),
    ],
)
def test_a_modality_that_cannot_be_used_is_refused(
    plane: ControlPlane, name: str, body: dict[str, object], status: int
) -> None:
    assert plane.client.put(f"{PLACE}{name}", json=body).status_code == status


def test_an_attempt_that_runs_keeps_its_work(plane: ControlPlane) -> None:
    job = plane.post_dataset("one")
    running = plane.tick_to(job, JobState.RUNNING)
    checkpoint = leave_checkpoint(plane.store, job, running.attempt, 5)
    add(plane)
    plane.launcher.lose(submission_id(running.id, running.attempt))
    plane.tick(3)
    second = plane.tick_to(job, JobState.RUNNING)
    assert second.attempt == 2
    key = layout.run_spec(job, second.attempt)
    spec = read_document(plane.store, key, JobSpec)
    assert spec.resume_from == checkpoint
    assert "depth" in spec.spec.modalities
    add(plane, "touch", width=2)
    train(plane.store, job, 2)
    plane.tick(4)
    assert plane.job(job).state == JobState.PUBLISHED


def test_a_method_that_is_not_installed_is_refused_with_those_that_are(
    plane: ControlPlane, tmp_path: Path
) -> None:
    body = {**SPEC, "name": "new", "method": NAME}
    answer = plane.client.post("/v1/models", json=body)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == "method"
    assert "permitted: vanilla" in error["message"]
    with installed(tmp_path):
        assert plane.client.post("/v1/models", json=body).status_code == 201
        assert MODULE not in sys.modules, "the service has no torch to import it with"
    # A model outlives the installation that made it.
    assert plane.client.get("/v1/models/new").json()["method"] == NAME


class _Metadata(DistributionFinder):
    """Finds no package, and checks during the search that the database is writable."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self.scans = 0

    def find_spec(self, *_: object) -> None:
        return None

    def find_distributions(
        self, _: DistributionFinder.Context | None = None
    ) -> Iterator[Distribution]:
        with closing(sqlite3.connect(self._database, timeout=0)) as connection:
            connection.execute("BEGIN IMMEDIATE")
        self.scans += 1
        return iter(())


def test_packages_are_not_searched_for_a_method_while_the_database_is_locked(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = _Metadata(tmp_path / "cmcl.db")
    monkeypatch.setattr(sys, "meta_path", [metadata, *sys.meta_path])
    body = {**SPEC, "name": "new", "method": NAME}
    assert plane.client.post("/v1/models", json=body).status_code == 422
    assert metadata.scans == 1
