"""The main path in one process: from a spec in the store to a complete candidate, or to words."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from cmcl.demo.stream import StreamDataset, read_stream
from tests.conftest import EXAMPLE_STREAM
from workers.contract.dataset import DatasetManifest, Shard, ShardRef
from workers.contract.errors import InvalidDataset, ObjectNotFound, TrainingDiverged
from workers.contract.job import Failure, JobSpec, Progress
from workers.contract.model import ModelSpec, TrainingSpec
from workers.storage import layout
from workers.storage.local import LocalStore
from workers.storage.shards import fetch
from workers.storage.versions import check_candidate, publish_files, read_candidate
from workers.train.job import train_dataset

STREAM = read_stream(EXAMPLE_STREAM)
SPEC = ModelSpec(width=32, modalities=STREAM.modalities, training=TrainingSpec(epochs=1))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def verified(path: Path, folder: Path) -> Shard:
    return fetch(ShardRef(uri=path.as_uri()), folder / "shard.parquet")


def prepare_job(
    store: LocalStore,
    folder: Path,
    dataset: StreamDataset,
    version: int = 1,
    spec: ModelSpec = SPEC,
) -> JobSpec:
    manifest = DatasetManifest(
        dataset=f"ds-{version}",
        model="m",
        name=dataset.name,
        pair=dataset.pair,
        shards=(verified(dataset.train, folder),),
        evaluation_shards=(verified(dataset.evaluation, folder),),
    )
    store.put(layout.dataset_manifest(manifest.dataset), manifest.model_dump_json().encode())
    parent = version - 1 or None
    job = JobSpec(
        job=f"job-{version}",
        attempt=1,
        model="m",
        version=version,
        parent=parent,
        spec=spec,
        dataset=manifest,
    )
    store.put(layout.run_spec(job.job, 1), job.model_dump_json().encode())
    return job


def run(store: LocalStore, job: JobSpec) -> None:
    train_dataset(store.uri, job.job, 1, torch.device("cpu"))


def test_two_datasets_become_a_chain_with_certificate_and_recall(
    store: LocalStore, tmp_path: Path
) -> None:
    for version, dataset in enumerate(STREAM.datasets[:2], start=1):
        run(store, prepare_job(store, tmp_path, dataset, version))
        candidate = read_candidate(store, f"job-{version}", 1)
        check_candidate(store, candidate)
        publish_files(store, candidate)
    assert [learned.name for learned in candidate.learned] == ["fashion", "parts-1"]
    assert set(candidate.report.evaluation) == {"ds-1", "ds-2"}
    assert candidate.report.drift["ds-1"].since_learned > 0
    assert candidate.report.protection["text"].blocked_share > 0
    progress = Progress.model_validate_json(store.read(layout.run_progress("job-2", 1)))
    assert progress.phase == "done"
    assert progress.updates_done == progress.updates_total > 0


def test_complete_candidate_is_left_as_it_is(store: LocalStore, tmp_path: Path) -> None:
    job = prepare_job(store, tmp_path, STREAM.datasets[0])
    run(store, job)
    before = store.read(layout.run_file(job.job, 1, layout.MANIFEST))
    run(store, job)
    assert store.read(layout.run_file(job.job, 1, layout.MANIFEST)) == before


def test_training_that_diverges_says_what_to_change(store: LocalStore, tmp_path: Path) -> None:
    # Unit vectors at a temperature of 1e-40 give scores that float32 has no room for.
    wild = SPEC.model_copy(update={"training": TrainingSpec(epochs=1, temperature=1e-40)})
    job = prepare_job(store, tmp_path, STREAM.datasets[0], spec=wild)
    with pytest.raises(TrainingDiverged, match=r"smaller training\.learning_rate"):
        run(store, job)
    failure = Failure.model_validate_json(store.read(layout.run_failure(job.job, 1)))
    assert failure.reason == "training_failed"
    with pytest.raises(ObjectNotFound):
        read_candidate(store, job.job, 1)


def test_shard_that_changed_after_it_was_verified_is_not_trained(
    store: LocalStore, tmp_path: Path
) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(STREAM.datasets[0].train.read_bytes())
    moved = StreamDataset(
        name="moved",
        pair=STREAM.datasets[0].pair,
        train=path,
        evaluation=STREAM.datasets[0].evaluation,
    )
    job = prepare_job(store, tmp_path, moved)
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(InvalidDataset, match="SHA-256"):
        run(store, job)
    failure = Failure.model_validate_json(store.read(layout.run_failure(job.job, 1)))
    assert failure.reason == "invalid_dataset"
    assert "train.parquet" in failure.message
