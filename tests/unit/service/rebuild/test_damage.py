"""Missing or damaged objects of a bucket are reported, and everything else is restored."""

import json
from pathlib import Path

import pytest

from cmcl.storage import layout
from cmcl.storage.versions import read_live
from service.core.errors import Conflict
from service.core.states import JobState
from service.maintenance.backup import Record, write
from service.maintenance.rebuild_bucket import Findings, Verify
from tests.fakes.control_plane import ControlPlane
from tests.fakes.lost_database import everything, rebuild, wreck
from tests.fakes.uploads import upload_whole
from tests.fakes.versions import stored_key
from tests.unit.service.uploads.test_sending import parquet

MANIFEST_OF_3 = layout.version_manifest("scenes", 3)


def _heads(plane: ControlPlane, number: int) -> str:
    return stored_key(plane.store, "scenes", number, layout.HEADS)


def _rebuilt(plane: ControlPlane, verify: Verify = "full", *, may_repair: bool = False) -> Findings:
    wreck(plane.context.database)
    return rebuild(plane, verify, may_repair=may_repair)


def _forget_attempts(plane: ControlPlane) -> None:
    """Remove attempts, as garbage collection does after some days."""
    _remove(plane, "runs/")


def _remove(plane: ControlPlane, prefix: str) -> None:
    for key in list(plane.store.keys(prefix)):
        plane.store.delete(key)


def _flip(plane: ControlPlane, key: str) -> None:
    data = bytearray(plane.store.read(key))
    data[len(data) // 2] ^= 1
    plane.store.put(key, bytes(data))


def _named(findings: Findings) -> list[str]:
    return [damage.what for damage in findings.damaged]


def test_a_flipped_bit_takes_a_version_out_of_use(plane: ControlPlane) -> None:
    _forget_attempts(plane)
    heads = _heads(plane, 2)
    _flip(plane, heads)
    (damage,) = _rebuilt(plane).damaged
    assert damage.what == "version 2 of 'scenes'"
    assert heads in damage.why
    assert [each.retired_at is None for each in plane.versions()] == [True, False, True]
    plane.tick(2)
    pointer = read_live(plane.store, "scenes")
    assert pointer is not None
    assert (pointer.version, pointer.generation) == (3, 3)
    assert plane.run_to_end(plane.post_dataset("four")).version == 4


def test_sizes_alone_do_not_show_a_flipped_bit(plane: ControlPlane) -> None:
    _forget_attempts(plane)
    heads = _heads(plane, 2)
    _flip(plane, heads)
    assert _named(_rebuilt(plane, "manifests")) == []
    plane.store.put(_heads(plane, 3), b"short")
    assert _named(_rebuilt(plane, "manifests")) == ["version 3 of 'scenes'"]


@pytest.mark.parametrize("lost", [layout.MANIFEST, layout.HEADS])
def test_an_earlier_version_answers_where_the_live_one_is_lost(
    plane: ControlPlane, lost: str
) -> None:
    _forget_attempts(plane)
    before = read_live(plane.store, "scenes")
    key = stored_key(plane.store, "scenes", 3, lost)
    plane.store.delete(key)
    findings = _rebuilt(plane)
    (damage,) = findings.damaged
    assert (damage.what, key in damage.why) == ("version 3 of 'scenes'", True)
    assert "branch it" in damage.so
    assert findings.repaired == ["version 2 of 'scenes' is live: version 3 cannot"]
    plane.tick(2)
    after = read_live(plane.store, "scenes")
    assert before is not None
    assert after is not None
    assert (after.version, after.generation) == (2, before.generation + 1)
    # Its number is not given again: replicas may still have the old one.
    assert plane.model().head == 3
    body = {"name": "twig", "version": 2}
    assert plane.client.post("/v1/models/scenes/branch", json=body).status_code == 201


def test_a_lost_version_is_restored_with_repair(plane: ControlPlane) -> None:
    before = everything(plane.context.database)
    _remove(plane, "models/scenes/versions/3/")
    (damage,) = _rebuilt(plane).damaged
    assert "--repair" in damage.so
    assert list(plane.store.keys("models/scenes/versions/3/")) == []
    findings = _rebuilt(plane, may_repair=True)
    assert findings.damaged == []
    assert any("was restored" in line for line in findings.repaired)
    assert everything(plane.context.database) == before
    assert _named(_rebuilt(plane)) == []


def test_a_manifest_that_was_exchanged_is_noticed(plane: ControlPlane) -> None:
    _forget_attempts(plane)
    data = plane.store.read(MANIFEST_OF_3)
    plane.store.put(MANIFEST_OF_3, data.replace(b'"final_loss":1.0', b'"final_loss":0.5'))
    (damage,) = _rebuilt(plane).damaged
    assert "not what was recorded (SHA-256)" in damage.why


def test_lost_moments_are_reported(plane: ControlPlane) -> None:
    _forget_attempts(plane)
    moments = layout.blob(plane.versions()[1].manifest.learned[-1].moments.sha256)
    plane.store.delete(moments)
    (damage,) = _rebuilt(plane).damaged
    assert damage.what == "version 2 of 'scenes'"
    assert moments in damage.why


def test_a_lost_manifest_of_a_dataset_is_reported(plane: ControlPlane) -> None:
    dataset = str(plane.versions()[0].manifest.dataset)
    plane.store.delete(layout.dataset_manifest(dataset))
    assert _named(_rebuilt(plane)) == [f"dataset {dataset}"]
    assert [each.number for each in plane.versions()] == [1, 2, 3]


def test_lost_held_out_rows_are_reported(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model()
    job = plane.post_dataset(evaluation_shards=[plane.shard("held-out")])
    plane.run_to_end(job)
    plane.record()
    dataset = plane.dataset_of(job).id
    _remove(plane, f"datasets/{dataset}/evaluation-")
    (damage,) = _rebuilt(plane).damaged
    assert damage.what == f"dataset {dataset}"
    assert damage.so == "later versions cannot be measured on it"
    plane.close()


def test_a_damaged_record_is_reported_and_manifests_are_used(plane: ControlPlane) -> None:
    key = layout.model_record("scenes")
    _flip(plane, key)
    findings = _rebuilt(plane)
    assert _named(findings) == [f"record {key}"]
    assert any("'scenes' has no record" in line for line in findings.assumed)
    assert (plane.model().head, plane.model().live_version) == (3, 3)


def test_a_record_of_a_newer_release_stops_the_rebuild(plane: ControlPlane) -> None:
    """Fields beyond the columns would be lost silently."""
    key = layout.model_record("scenes")
    record = Record.model_validate(json.loads(plane.store.read(key))["record"])
    (row,) = record.tables["models"]
    tables = record.tables | {"models": [row | {"colour": "red"}]}
    plane.store.put(key, write(record.model_copy(update={"tables": tables})))
    with pytest.raises(Conflict, match=r"newer release .*colour"):
        _rebuilt(plane)
    assert all(not rows for rows in everything(plane.context.database).values())


def test_a_dataset_without_any_record_is_queued(plane: ControlPlane) -> None:
    job = plane.post_dataset("four")
    plane.tick_to(job, JobState.RUNNING)
    dataset = plane.dataset_of(job).id
    plane.record()
    plane.store.delete(layout.dataset_record(dataset))
    findings = _rebuilt(plane)
    assert findings.damaged == []
    assert any(dataset in line and "queued" in line for line in findings.assumed)
    assert plane.run_to_end(dataset.replace("ds-", "job-")).version == 4


def test_a_dataset_that_is_measured_only_stays_so(plane: ControlPlane) -> None:
    ended = plane.run_to_end(plane.post_dataset("views", evaluate_only=True))
    without_record = plane.run_to_end(plane.post_dataset("more", evaluate_only=True))
    plane.record()
    plane.store.delete(layout.dataset_record(str(without_record.dataset)))
    assert _rebuilt(plane).damaged == []
    assert plane.job(ended.id).evaluation == ended.evaluation
    again = plane.run_to_end(str(without_record.dataset).replace("ds-", "job-"))
    assert (again.kind, again.state, again.version) == ("evaluate", JobState.EVALUATED, None)
    fourth = plane.run_to_end(plane.post_dataset("four"))
    assert fourth.version == 4
    measured = plane.versions()[-1].manifest.report.evaluation_only
    assert {each.name for each in measured} == {"views", "more"}


def test_a_file_that_was_learned_is_known_again_though_sealed_after_the_record(
    plane: ControlPlane,
) -> None:
    data = parquet()
    body = plane.dataset_body("four", shards=[{"uri": upload_whole(plane, data)}], sealed=False)
    dataset = plane.client.post("/v1/datasets", json=body).json()["dataset"]["id"]
    plane.record()
    accepted = plane.client.post(f"/v1/datasets/{dataset}/seal").json()
    plane.run_to_end(accepted["job"]["id"])
    assert _rebuilt(plane).damaged == []
    again = plane.dataset_body("again", shards=[{"uri": upload_whole(plane, data)}])
    answer = plane.client.post("/v1/datasets", json=again)
    assert answer.json()["dataset"]["id"] == dataset


def test_an_attempt_number_is_not_used_twice(plane: ControlPlane) -> None:
    job = plane.post_dataset("four")
    plane.record()
    plane.tick_to(job, JobState.RUNNING)
    _rebuilt(plane)
    assert (plane.job(job).state, plane.job(job).attempt) == (JobState.PREPARED, 1)
    assert plane.run_to_end(job).attempt == 2


def test_a_deleted_model_is_rebuilt_as_deleted(plane: ControlPlane) -> None:
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204
    plane.tick(2)
    plane.record()
    _remove(plane, "models/scenes/")
    assert _rebuilt(plane).damaged == []
    assert plane.client.get("/v1/models/scenes").status_code == 404
    assert plane.client.post("/v1/models", json={"name": "scenes"}).status_code >= 400
