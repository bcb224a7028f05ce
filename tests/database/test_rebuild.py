"""A lost database is rebuilt from object storage, on SQLite and PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.storage.versions import read_live
from service.core.errors import Conflict
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table
from tests.fakes.lost_database import everything, rebuild, wreck
from tests.fakes.trainer import train
from tests.fakes.uploads import upload_whole


@pytest.fixture
def plane(tmp_path: Path, database_url: str) -> Iterator[ControlPlane]:
    """A control plane without models."""
    plane = ControlPlane(tmp_path, database_url=database_url)
    yield plane
    plane.close()


def _live_a_little(plane: ControlPlane) -> None:
    """Create versions that were promoted, rolled back and retired; a branch, a deleted model."""
    plane.create_model()
    for name in ("one", "two", "three"):
        plane.run_to_end(plane.post_dataset(name))
    ok = [
        plane.client.post("/v1/models/scenes/rollback", json={"reason": "worse"}),
        plane.client.request("DELETE", "/v1/models/scenes/versions/1"),
        plane.client.post("/v1/models/scenes/branch", json={"name": "twig", "version": 2}),
        plane.client.put("/v1/models/scenes/gate", json={"max_drift": 0.7, "priority": "high"}),
    ]
    assert [answer.status_code for answer in ok] == [200, 204, 201, 200]
    plane.create_model("gone")
    assert plane.client.request("DELETE", "/v1/models/gone").status_code == 204
    plane.tick(8)


def _leave_things_open(plane: ControlPlane) -> dict[str, str]:
    """Create a job in each state in which one can wait; by state."""
    plane.create_model("fresh", seed=7)
    found: dict[str, str] = {}
    table = feature_table(16, prefix="bad").drop_columns(["feature_b"])
    found["failed"] = plane.post_dataset("bad", "fresh", shards=[plane.shard("bad", table)])
    plane.tick_to(found["failed"], JobState.FAILED)
    found["running"] = plane.post_dataset("running", "fresh")
    plane.tick_to(found["running"], JobState.RUNNING)
    shard = plane.shards / "fresh-running.parquet"
    uri = upload_whole(plane, shard.read_bytes())
    found["queued"] = plane.post_dataset("queued", "fresh", shards=[{"uri": uri}])
    found["cancelled"] = plane.post_dataset("cancelled", "fresh")
    assert plane.client.post(f"/v1/jobs/{found['cancelled']}/cancel").status_code < 300
    plane.create_model("strict")
    plane.client.put("/v1/models/strict/gate", json={"manual_approval": True})
    found["held"] = plane.post_dataset("held", "strict")
    plane.tick_to(found["held"], JobState.RUNNING)
    train(plane.store, found["held"], 1)
    plane.tick_to(found["held"], JobState.HELD)
    body = plane.dataset_body("open", "strict", sealed=False)
    assert plane.client.post("/v1/datasets", json=body).status_code == 201
    return found


def test_nothing_that_matters_is_lost_with_the_database(plane: ControlPlane) -> None:
    _live_a_little(plane)
    _leave_things_open(plane)
    plane.record()
    before = everything(plane.context.database)
    wreck(plane.context.database)
    findings = rebuild(plane)
    assert (findings.damaged, findings.repaired, findings.left_out) == ([], [], [])
    assert everything(plane.context.database) == before
    assert {table: bool(rows) for table, rows in before.items()} == dict.fromkeys(before, True)


def test_work_continues_after_a_rebuild(plane: ControlPlane) -> None:
    _live_a_little(plane)
    jobs = _leave_things_open(plane)
    plane.record()
    pointer = read_live(plane.store, "scenes")
    assert pointer is not None
    wreck(plane.context.database)
    rebuild(plane)
    assert plane.run_to_end(jobs["running"]).attempt == 1
    assert plane.run_to_end(jobs["queued"]).version == 2
    assert plane.client.post(f"/v1/jobs/{jobs['held']}/approve").status_code == 202
    assert plane.run_to_end(jobs["held"]).state == JobState.PUBLISHED
    ended = plane.run_to_end(plane.post_dataset("four"))
    assert (ended.parent_version, ended.version) == (3, 4)
    after = read_live(plane.store, "scenes")
    assert after is not None
    assert (after.version, after.generation) == (4, pointer.generation + 1)
    assert after.order > pointer.order


def test_a_database_with_rows_is_left_alone(plane: ControlPlane) -> None:
    plane.create_model()
    plane.record()
    before = everything(plane.context.database)
    with pytest.raises(Conflict, match="models"):
        rebuild(plane)
    assert everything(plane.context.database) == before
