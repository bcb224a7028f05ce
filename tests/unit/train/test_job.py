"""The main path in one process: from a spec in the store to a complete candidate, or to a failure report."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.errors import (
    InvalidDataset,
    ObjectNotFound,
    StorageUnavailable,
    TrainingDiverged,
    UnknownMethod,
)
from cmcl.contract.job import Failure, JobSpec, StageReport
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.contract.version import VersionManifest, datasets_to_measure
from cmcl.demo.run import Stream, StreamDataset, read_stream
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import check_complete, publish_manifest, read_candidate
from tests.conftest import EXAMPLE_STREAM
from tests.fakes.feature_shards import fetch
from tests.fakes.running import newest_progress
from workers.files.shards import Scratch
from workers.train.dataset import training_rows
from workers.train.evaluation import evaluate
from workers.train.job import train_dataset

WIDTHS = {"image": 96, "text": 64, "depth": 64}
_FOLDER = TemporaryDirectory()


def narrow_stream(folder: Path) -> Stream:
    """The first datasets of the example stream, with the first features alone: decompositions of all take seconds."""
    datasets = []
    for dataset in read_stream(EXAMPLE_STREAM).datasets[:3]:
        for path in (dataset.train, dataset.evaluation):
            table = pq.read_table(path)
            for column, modality in zip(
                ("feature_a", "feature_b"), dataset.pair.modalities, strict=True
            ):
                rows = np.stack(table.column(column).to_numpy())[:, : WIDTHS[modality]]
                values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
                at = table.schema.get_field_index(column)
                table = table.set_column(at, column, values)
            pq.write_table(table, folder / path.name)
        datasets.append(
            replace(
                dataset,
                train=folder / dataset.train.name,
                evaluation=folder / dataset.evaluation.name,
            )
        )
    return Stream(folder, WIDTHS, datasets)


STREAM = narrow_stream(Path(_FOLDER.name))
SPEC = ModelSpec(
    width=32,
    modalities=STREAM.modalities,
    training=TrainingSpec(epochs=1),
    policy="preserve",
)
# Jobs of test_unlearn_and_merge.py have a lift.
SOLVED = SPEC.model_copy(update={"policy": "improve", "lift": 0})


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
        traceparent="00-trace",
    )
    store.put(layout.run_spec(job.job, 1), job.model_dump_json().encode())
    return job


def run(store: LocalStore, job: JobSpec) -> None:
    train_dataset(store.uri, job.job, 1, torch.device("cpu"))


def learn_two(store: LocalStore, folder: Path) -> list[VersionManifest]:
    """Versions 1 and 2 of the example stream, published."""
    return [publish(store, folder, version) for version in (1, 2)]


def publish(store: LocalStore, folder: Path, version: int) -> VersionManifest:
    """Learn the next dataset of the example stream. The first one is solved, later ones are trained on rows."""
    run(store, prepare_job(store, folder, STREAM.datasets[version - 1], version))
    candidate = read_candidate(store, f"job-{version}", 1)
    publish_manifest(store, candidate)
    return candidate


@dataclass(frozen=True)
class Chain:
    """Two versions, and the store that has them."""

    store: LocalStore
    versions: list[VersionManifest]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    store = LocalStore(folder / "store")
    return Chain(store, learn_two(store, folder))


def test_a_version_writes_only_what_changed(chain: Chain) -> None:
    """Fashion is of image and text, parts-1 of depth and text."""
    first, second = chain.versions
    shared = {name for name in first.files if second.files[name] == first.files[name]}
    basis = {layout.method_state(f"basis/image/{part}") for part in ("values", "vectors")}
    assert shared == {layout.pooled_moments("image", "text"), *basis}
    # The first dataset of a pair is what is pooled.
    assert second.files[layout.pooled_moments("depth", "text")] == second.learned[-1].moments


def test_two_datasets_become_a_chain_with_certificate_and_recall(chain: Chain) -> None:
    store, candidate = chain.store, chain.versions[-1]
    for version in chain.versions:
        check_complete(store, version)
    assert [learned.name for learned in candidate.learned] == ["fashion", "parts-1"]
    assert set(candidate.report.evaluation) == {"ds-1", "ds-2"}
    assert set(candidate.report.score_errors) == {"ds-1", "ds-2"}
    assert candidate.report.drift["ds-1"].since_learned > 0
    assert candidate.report.protection["text"].blocked_share > 0
    assert candidate.learned[-1].recall == candidate.report.evaluation["ds-2"]
    progress = newest_progress(store, "job-2", 1)
    assert progress is not None
    assert progress.phase == "done"
    assert progress.updates_done == progress.updates_total > 0


def test_a_traced_attempt_reports_its_stages(chain: Chain) -> None:
    report = read_document(chain.store, layout.run_stages("job-2", 1), StageReport)
    assert report.traceparent == "00-trace"
    names = [stage.name for stage in report.stages]
    assert (names[:2], names[-2:]) == (["starting", "reading"], ["certifying", "writing"])
    assert {"moments", "training", "limiting"} <= set(names)
    begins = [stage.began_at for stage in report.stages]
    assert begins == sorted(begins)


def test_a_solved_version_says_how_and_is_certified(store: LocalStore, tmp_path: Path) -> None:
    agreements = []
    for version, dataset in enumerate(STREAM.datasets[:2], start=1):
        job = prepare_job(store, tmp_path, dataset, version, spec=SOLVED)
        job = job.model_copy(update={"measures_agreement": version == 2})
        store.put(layout.run_spec(job.job, 1), job.model_dump_json().encode())
        run(store, job)
        candidate = read_candidate(store, f"job-{version}", 1)
        check_complete(store, candidate)
        publish_manifest(store, candidate)
        agreements.append(candidate.report.agreement is not None)
    assert agreements == [False, True]
    report = candidate.report
    assert report.solution is not None
    assert 0 < report.solution.directions <= SOLVED.width
    assert set(report.solution.ridges) == {"depth", "image", "text"}
    assert report.solution.groups == (("depth", "image", "text"),)
    assert report.drift["ds-1"].since_learned > 0
    assert report.quality["ds-1"].now < -0.5
    overlap = report.overlap["ds-1"]
    assert overlap.rows == report.evaluation["ds-1"].rows
    assert overlap.measured == pytest.approx(overlap.expected, abs=0.15)
    assert overlap.expected < 1
    assert report.recall_before is not None
    assert report.recall_before.at_1 < report.evaluation["ds-2"].at_1
    assert report.protection == {}
    assert report.capacity == {}
    assert report.quality["ds-1"].best is not None
    assert report.quality["ds-1"].best < report.quality["ds-1"].now
    assert candidate.learned[1].attainable is not None
    assert set(candidate.learned[1].ridges) == set(candidate.learned[1].pair.modalities)
    progress = newest_progress(store, "job-2", 1)
    assert progress is not None
    assert progress.phase == "done"


def test_without_a_bound_a_version_measures_the_datasets_whose_turn_it_is(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmcl.contract.version._MOST_MEASURED", 1)
    for version, dataset in enumerate(STREAM.datasets[:3], start=1):
        job = prepare_job(store, tmp_path, dataset, version, spec=SOLVED)
        run(store, job)
        candidate = read_candidate(store, f"job-{version}", 1)
        publish_manifest(store, candidate)
    (due,) = datasets_to_measure(job, candidate.earlier)
    assert set(candidate.report.drift) == set(candidate.report.quality) == {due.dataset}
    assert set(candidate.report.evaluation) == {due.dataset, "ds-3"}


@pytest.mark.parametrize("version", [1, 2])
def test_a_polish_that_diverges_says_what_to_change(
    store: LocalStore, tmp_path: Path, version: int
) -> None:
    if version == 2:
        run(store, prepare_job(store, tmp_path, STREAM.datasets[0], spec=SOLVED))
        publish_manifest(store, read_candidate(store, "job-1", 1))
    wild = SOLVED.model_copy(update={"training": TrainingSpec(temperature=1e-40)})
    job = prepare_job(store, tmp_path, STREAM.datasets[version - 1], version, spec=wild)
    with pytest.raises(TrainingDiverged, match=r"larger training\.temperature"):
        run(store, job)


def test_the_report_has_the_gain_and_the_free_capacity(chain: Chain) -> None:
    first, second = (version.report for version in chain.versions)
    for version, report in enumerate((first, second), start=1):
        assert report.recall_before is not None
        assert report.recall_before.at_1 < report.evaluation[f"ds-{version}"].at_1
    assert set(first.capacity) == {"image", "text"}
    assert set(second.capacity) == {"image", "text", "depth"}
    assert second.capacity["text"].free_share < first.capacity["text"].free_share < 1
    assert second.capacity["text"].input_width == STREAM.modalities["text"] + 1


def test_held_out_rows_that_were_deleted_on_purpose_are_not_measured(
    store: LocalStore, tmp_path: Path
) -> None:
    run(store, prepare_job(store, tmp_path, STREAM.datasets[0]))
    publish_manifest(store, read_candidate(store, "job-1", 1))
    manifest = read_document(store, layout.dataset_manifest("ds-1"), DatasetManifest)
    swept = manifest.model_copy(update={"evaluation_shards": ()})
    store.put(layout.dataset_manifest("ds-1"), swept.model_dump_json().encode())
    run(store, prepare_job(store, tmp_path, STREAM.datasets[1], version=2))
    candidate = read_candidate(store, "job-2", 1)
    assert set(candidate.report.evaluation) == {"ds-2"}
    assert candidate.learned[0].recall is not None, "what it was then is still known"


def test_dataset_without_held_out_rows_has_no_recall(store: LocalStore, tmp_path: Path) -> None:
    job = prepare_job(store, tmp_path, STREAM.datasets[0])
    bare = job.model_copy(
        update={"dataset": job.learns.model_copy(update={"evaluation_shards": ()})}
    )
    store.put(layout.run_spec(job.job, 1), bare.model_dump_json().encode())
    run(store, bare)
    candidate = read_candidate(store, "job-1", 1)
    assert (candidate.report.recall_before, candidate.learned[0].recall) == (None, None)


def test_held_out_rows_have_the_whole_local_disk_for_their_copies(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 24

    def evaluate_with_all_room(*arguments: Any) -> Any:
        scratch = arguments[-1]
        assert isinstance(scratch, Scratch)
        with closing(scratch.new_file()) as file:
            file.reserve(limit)
        return evaluate(*arguments)

    monkeypatch.setenv("CMCL_SCRATCH_BYTES", str(limit))
    monkeypatch.setattr("workers.train.job.training_rows", partial(training_rows, most_bytes=0))
    monkeypatch.setattr("workers.train.job.evaluate", evaluate_with_all_room)
    run(store, prepare_job(store, tmp_path, STREAM.datasets[0]))
    assert "ds-1" in read_candidate(store, "job-1", 1).report.evaluation


def test_held_out_rows_that_cannot_be_copied_are_detected_before_training(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare_job(store, tmp_path, STREAM.datasets[0])
    far = job.learns.evaluation_shards[0].model_copy(
        update={"uri": "s3://held-out/rows.parquet", "bytes": (1 << 24) + 1}
    )
    dataset = job.learns.model_copy(update={"evaluation_shards": (far,)})
    large = job.model_copy(update={"dataset": dataset})
    store.put(layout.run_spec(job.job, 1), large.model_dump_json().encode())
    monkeypatch.setenv("CMCL_SCRATCH_BYTES", str(1 << 24))
    with pytest.raises(StorageUnavailable, match=r"16777217 bytes.*CMCL_SCRATCH_BYTES permits"):
        run(store, large)
    progress = newest_progress(store, job.job, 1)
    assert progress is not None
    assert (progress.phase, progress.updates_done) == ("reading", 0)


def test_complete_candidate_is_left_as_it_is(store: LocalStore, tmp_path: Path) -> None:
    job = prepare_job(store, tmp_path, STREAM.datasets[0])
    run(store, job)
    before = store.read(layout.run_candidate(job.job, 1))
    run(store, job)
    assert store.read(layout.run_candidate(job.job, 1)) == before


def test_training_that_diverges_says_what_to_change(store: LocalStore, tmp_path: Path) -> None:
    # Unit vectors at a temperature of 1e-40 give scores that float32 has no room for.
    wild = SPEC.model_copy(update={"training": TrainingSpec(epochs=1, temperature=1e-40)})
    publish(store, tmp_path, 1)
    job = prepare_job(store, tmp_path, STREAM.datasets[1], 2, wild)
    with pytest.raises(TrainingDiverged, match=r"update 1 of .*smaller training\.learning_rate"):
        run(store, job)
    progress = newest_progress(store, job.job, 1)
    assert progress is not None
    assert progress.phase == "training"
    failure = read_document(store, layout.run_failure(job.job, 1), Failure)
    assert failure.reason == "training_failed"
    with pytest.raises(ObjectNotFound):
        read_candidate(store, job.job, 1)


def test_a_worker_without_the_method_fails_the_job_before_it_reads(
    store: LocalStore, tmp_path: Path
) -> None:
    other = SPEC.model_copy(update={"policy": None, "method": "not-installed-here"})
    job = prepare_job(store, tmp_path, STREAM.datasets[0], spec=other)
    with pytest.raises(UnknownMethod):
        run(store, job)
    failure = read_document(store, layout.run_failure(job.job, 1), Failure)
    assert failure.reason == "training_failed"
    assert "'not-installed-here' is not installed where" in failure.message
    progress = newest_progress(store, job.job, 1)
    assert progress is not None
    assert progress.phase == "starting"


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
    with pytest.raises(InvalidDataset, match="BLAKE3"):
        run(store, job)
    failure = read_document(store, layout.run_failure(job.job, 1), Failure)
    assert failure.reason == "invalid_dataset"
    stages = read_document(store, layout.run_stages(job.job, 1), StageReport).stages
    assert [stage.name for stage in stages] == ["starting", "reading"]
    assert "train.parquet" in failure.message


# A separate process, because a notice is permanent. It exits with 0 at the first checkpoint.
NOTICED = """
import os, sys, threading, time
import torch
from cmcl.storage.uris import open_store
from tests.fakes.running import newest_progress
from workers.train.job import train_dataset
from workers.train.checkpoint import watch_for_preemption

def watch():
    while not list(open_store(sys.argv[1]).keys("runs/job-2/a1/checkpoints/")):
        time.sleep(0.05)
    os._exit(0)

watch_for_preemption(lambda: "node-7").join()
threading.Thread(target=watch, daemon=True).start()
train_dataset(sys.argv[1], "job-2", 1, torch.device("cpu"))
sys.exit("it was over without a checkpoint")
"""


def test_notice_that_a_node_goes_leaves_a_checkpoint_long_before_it_is_due(
    store: LocalStore, tmp_path: Path
) -> None:
    training = TrainingSpec(epochs=1000, batch_size=32)
    spec = SPEC.model_copy(update={"training": training})
    publish(store, tmp_path, 1)
    prepare_job(store, tmp_path, STREAM.datasets[1], 2, spec)
    command = [sys.executable, "-c", NOTICED, store.uri]
    seldom = {**os.environ, "CMCL_CHECKPOINT_SECONDS": "100000"}
    done = subprocess.run(command, env=seldom, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "preemption notice: node-7" in done.stdout
