"""Missing or damaged objects of a bucket are reported, and everything else is restored."""

from pathlib import Path

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.storage import layout
from cmcl.storage.documents import with_checksum, without_checksum
from cmcl.storage.versions import read_live
from service.core.errors import Conflict
from service.maintenance.backup import decode, encode
from service.maintenance.rebuild import Findings, Verify
from tests.fakes.control_plane import ControlPlane
from tests.fakes.lost_database import everything, rebuild, wreck
from tests.fakes.versions import stored_key

MANIFEST_OF_3 = layout.version_manifest("scenes", 3)


def _heads(plane: ControlPlane, number: int) -> str:
    return stored_key(plane.store, "scenes", number, layout.HEADS)


def _rebuilt(plane: ControlPlane, verify: Verify = "full") -> Findings:
    wreck(plane.context.database)
    return rebuild(plane, verify)


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


def test_a_manifest_that_was_exchanged_is_noticed(plane: ControlPlane) -> None:
    _forget_attempts(plane)
    data = without_checksum(plane.store.read(MANIFEST_OF_3), layout.MANIFEST)
    # Whole, with a checksum of its own: only the record shows that it is another one.
    other = with_checksum(data.replace(b'"final_loss":1.0', b'"final_loss":0.5'), layout.MANIFEST)
    plane.store.put(MANIFEST_OF_3, other)
    (damage,) = _rebuilt(plane).damaged
    assert "not what was recorded (SHA-256)" in damage.why


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


def test_a_model_with_a_damaged_record_is_left_out_and_others_are_restored(
    plane: ControlPlane,
) -> None:
    plane.create_model("other")
    plane.record()
    key = layout.model_record("scenes")
    _flip(plane, key)
    record, model, *datasets = _named(_rebuilt(plane))
    assert (record, model) == (f"record {key}", "model 'scenes'")
    assert len(datasets) == 3
    assert plane.model("other").head == 0
    assert plane.client.get("/v1/models/scenes").status_code == 404


def test_a_dataset_that_was_learned_and_has_no_record_is_reported(plane: ControlPlane) -> None:
    dataset = str(plane.versions()[0].manifest.dataset)
    plane.store.delete(layout.dataset_record(dataset))
    (damage,) = _rebuilt(plane).damaged
    assert (damage.what, "version 1" in damage.why) == (f"dataset {dataset}", True)
    assert [each.job is None for each in plane.versions()] == [True, False, False]
    assert plane.run_to_end(plane.post_dataset("four")).version == 4


def test_a_record_of_a_newer_release_stops_the_rebuild(plane: ControlPlane) -> None:
    """Fields beyond the columns would be lost silently."""
    key = layout.model_record("scenes")
    record = decode(plane.store.read(key), "model", "scenes")
    record.tables["models"][0]["colour"] = "red"
    plane.store.put(key, encode(record, "model", "scenes"))
    with pytest.raises(Conflict, match=r"newer release .*colour"):
        _rebuilt(plane)
    assert all(not rows for rows in everything(plane.context.database).values())


def test_a_dataset_without_record_and_version_is_left_out_and_named(plane: ControlPlane) -> None:
    job = plane.post_dataset("four")
    plane.tick_to(job, JobState.RUNNING)
    dataset = plane.dataset_of(job).id
    plane.record()
    plane.store.delete(layout.dataset_record(dataset))
    findings = _rebuilt(plane)
    assert findings.damaged == []
    assert any(dataset in line and "post it again" in line for line in findings.left_out)
    assert plane.run_to_end(plane.post_dataset("four")).version == 4


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
