"""When a node dies during training, time is lost and the result is the same."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.job import JobSpec, submission_id
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.running import Shown, read_running
from cmcl.storage.uris import open_store
from cmcl.storage.versions import check_complete, read_candidate, read_version_file
from tests.clusters.nodes import Nodes
from tests.fakes.first_version import publish_first
from workers.files.shards import describe_shard
from workers.train.job import train_dataset

WIDTHS = {"vision": 64, "text": 48}
SPEC = ModelSpec(
    width=32, modalities=WIDTHS, training=TrainingSpec(epochs=25, batch_size=256), policy="preserve"
)
SECONDS = 800


def dataset(store: ObjectStore, folder: Path, model: str, name: str, rows: int) -> DatasetManifest:
    """Correlated pairs: two random views of 32 latent numbers, plus noise."""
    draws = np.random.default_rng(0)
    hidden = draws.normal(size=(rows, 32)).astype(np.float32)
    columns: dict[str, pa.Array] = {"id": pa.array([f"row-{row}" for row in range(rows)])}
    for column, width in zip(("feature_a", "feature_b"), WIDTHS.values(), strict=True):
        view, noise = draws.normal(size=(32, width)), draws.normal(size=(rows, width))
        values = pa.array((hidden @ view + noise).astype(np.float32).ravel())
        columns[column] = pa.FixedSizeListArray.from_arrays(values, width)
    path, key = folder / f"{name}.parquet", f"files/{name}.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=1024)
    store.upload(path, key)
    return DatasetManifest(
        dataset=f"{model}-{name}",
        model=model,
        name=name,
        pair=ModalityPair(first="vision", second="text"),
        shards=(describe_shard(path, f"{store.uri}/{key}"),),
    )


def prepare(store: ObjectStore, folder: Path, job: str) -> None:
    """Write the first version of the job's model, and the spec of its first attempt at the second."""
    publish_first(store, SPEC, dataset(store, folder, job, "first", 1024))
    rows = dataset(store, folder, job, "rows", 4096)
    spec = JobSpec(job=job, attempt=1, model=job, version=2, parent=1, spec=SPEC, dataset=rows)
    store.put(layout.run_spec(job, 1), spec.model_dump_json().encode())


def candidate(store: ObjectStore, job: str) -> tuple[VersionManifest, dict[str, torch.Tensor]]:
    manifest = read_candidate(store, job, 1)
    check_complete(store, manifest)
    return manifest, safetensors.torch.load(read_version_file(store, manifest, layout.HEADS))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.ray
def test_a_job_that_loses_a_node_continues_with_fewer_ranks(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = open_store((tmp_path / "store").as_uri())
    for job in ("elastic", "alone"):
        prepare(store, tmp_path, job)
    train_dataset(store.uri, "alone", 1, torch.device("cpu"))

    def share_done() -> float:
        shown = read_running(store).get(submission_id("elastic", 1), Shown()).progress()
        if shown is None or shown.phase != "training":
            return 0.0
        return shown.updates_done / max(shown.updates_total, 1)

    # A node counts as lost when five checks have failed, by default one in 3 s.
    often = {"CMCL_CHECKPOINT_SECONDS": "1", "RAY_health_check_period_ms": "500"}
    with Nodes(tmp_path / "ray", often, cpus_of_head=1, others=("127.0.0.2",)) as nodes:
        command = [
            *(sys.executable, "-m", "workers.train", "--store", store.uri, "--job", "elastic"),
            *("--attempt", "1", "--ranks", "2", "--min-ranks", "1"),
        ]
        driver = nodes.start_driver(command, "driver")
        try:
            wait_until(lambda: driver.poll() is not None or share_done() >= 0.3)
            assert driver.poll() is None, "training ended before the fault"
            nodes.kill("127.0.0.2")
            wait_until(lambda: driver.poll() is not None)
        finally:
            driver.kill()
            driver.wait()
        assert driver.returncode == 0, "the same attempt continues"
    manifest, heads = candidate(store, "elastic")
    assert manifest.report.ranks == 1, "with the rank that is left"
    expected = candidate(store, "alone")[1]
    for name, head_EI in heads.items():
        assert float((head_EI - expected[name]).abs().max()) < 1e-5
