"""Every bad input that is found inside a shard: the job says why, and nothing is left of it."""

import hashlib
import os

import numpy as np
import pyarrow as pa
import pytest

from service.jobs import outcomes
from service.states import FailureReason, JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table


def _with_value(value: float) -> pa.Table:
    table = feature_table(16)
    values = table.column("feature_a").combine_chunks().flatten().to_numpy().copy()
    values[9] = value
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), 4)
    return table.set_column(1, "feature_a", column)


def _with_repeated_id() -> pa.Table:
    table = feature_table(16)
    ids = table.column("id").to_pylist()
    return table.set_column(0, "id", pa.array([*ids[:-1], ids[0]]))


BAD_TABLES = {
    "another width": (feature_table(16, widths=(5, 3)), "width 5, the model declares 4"),
    "no rows": (feature_table(0), "no rows"),
    "fewer rows than a batch": (feature_table(7), "7 rows"),
    "not a number": (_with_value(float("nan")), "NaN or infinity in row 2"),
    "infinity": (_with_value(float("inf")), "NaN or infinity in row 2"),
    "a repeated id": (_with_repeated_id(), "'row-0'"),
    "no features": (feature_table(16).drop_columns(["feature_b"]), "'feature_b' is missing"),
    "numbers as ids": (feature_table(16).set_column(0, "id", pa.array(range(16))), "'id'"),
}


def _assert_quarantined(plane: ControlPlane, job: str, words: str) -> None:
    found = plane.run_to_end(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.INVALID_DATASET)
    assert words in (found.message or "")
    dataset = plane.dataset_of(job)
    assert dataset.quarantine_reason == found.message
    assert dataset.fingerprint is None
    # Copies that were made before the bad row was found are the sweeper's; nothing names them.
    assert not any(key.endswith("manifest.json") for key in plane.store.keys("datasets/"))
    assert dataset.manifest is None
    assert plane.launcher.commands == {}
    assert plane.model().head == 0


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_shard_is_quarantined(plane: ControlPlane, kind: str) -> None:
    table, words = BAD_TABLES[kind]
    job = plane.post_dataset(shards=[plane.shard("bad", table)])
    _assert_quarantined(plane, job, words)


def test_a_missing_shard_is_quarantined(plane: ControlPlane) -> None:
    uri = f"{plane.shards.resolve().as_uri()}/nowhere.parquet"
    _assert_quarantined(plane, plane.post_dataset(shards=[{"uri": uri}]), "no such object")


def test_a_truncated_shard_is_quarantined(plane: ControlPlane) -> None:
    shard = plane.shard("cut")
    os.truncate(plane.shards / "cut.parquet", 300)
    _assert_quarantined(plane, plane.post_dataset(shards=[shard]), "cannot be read as Parquet")


def test_another_digest_is_quarantined(plane: ControlPlane) -> None:
    shard = {**plane.shard("other"), "sha256": "0" * 64}
    _assert_quarantined(plane, plane.post_dataset(shards=[shard]), "SHA-256")


def test_the_promised_digest_is_accepted(plane: ControlPlane) -> None:
    shard = plane.shard("good")
    digest = hashlib.sha256((plane.shards / "good.parquet").read_bytes()).hexdigest()
    job = plane.post_dataset(shards=[{**shard, "sha256": digest}])
    assert plane.run_to_end(job).state == JobState.PUBLISHED


def test_a_bad_held_out_shard_is_found_behind_a_good_one(plane: ControlPlane) -> None:
    good = plane.shard("held-out", feature_table(16, prefix="held"))
    bad = plane.shard("bad", _with_value(np.nan))
    job = plane.post_dataset(evaluation_shards=[good, bad])
    _assert_quarantined(plane, job, "NaN")


def test_a_held_out_row_is_no_training_row(plane: ControlPlane) -> None:
    same = plane.shard("again", feature_table(16, prefix="scenes-one"))
    job = plane.post_dataset(evaluation_shards=[same])
    _assert_quarantined(plane, job, "repeats the id")


def test_ids_are_unique_over_all_shards(plane: ControlPlane) -> None:
    shards = [plane.shard(name, feature_table(16)) for name in ("a", "b")]
    _assert_quarantined(plane, plane.post_dataset(shards=shards), "repeats the id")


def test_a_repaired_dataset_can_be_posted_again(plane: ControlPlane) -> None:
    body = plane.dataset_body("one", shards=[plane.shard("x", feature_table(3))])
    first = plane.client.post("/v1/datasets", json=body).json()["job"]["id"]
    plane.run_to_end(first)
    plane.shard("x")
    second = plane.client.post("/v1/datasets", json=body)
    assert second.status_code == 202
    assert plane.run_to_end(second.json()["job"]["id"]).state == JobState.PUBLISHED


def test_a_repaired_dataset_can_be_retried(plane: ControlPlane) -> None:
    job = plane.post_dataset(shards=[plane.shard("x", feature_table(3))])
    plane.run_to_end(job)
    plane.shard("x")
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.dataset_of(job).quarantine_reason is None


def test_a_bad_dataset_does_not_delay_the_next(plane: ControlPlane) -> None:
    plane.post_dataset("one", shards=[plane.shard("x", feature_table(3))])
    second = plane.post_dataset("two")
    assert plane.run_to_end(second).state == JobState.PUBLISHED
    assert [version.number for version in plane.versions()] == [1]


def test_a_late_validator_cannot_quarantine_what_another_accepted(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    seen = plane.tick_to(job, JobState.VALIDATING)
    plane.tick_to(job, JobState.RUNNING)
    assert not outcomes.quarantine(plane.context, seen, "the shard is gone by now")
    assert plane.job(job).state == JobState.RUNNING
    assert plane.dataset_of(job).quarantine_reason is None
