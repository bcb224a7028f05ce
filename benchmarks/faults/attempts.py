"""A generated dataset, and attempts of one job that trains on it in a model that has learned some of its rows."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch

from benchmarks.first_version import publish_first
from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.job import JobSpec, Progress, submission_id
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.running import Shown, read_running
from cmcl.storage.versions import check_complete, read_candidate, read_version_file
from workers.files.shards import describe_shard

_WIDTHS = (256, 192)
_FIRST, _SECOND = "vision", "text"


@dataclass(frozen=True)
class Size:
    """Size of the training."""

    rows: int
    epochs: int
    batch_size: int = 512
    width: int = 128


@dataclass(frozen=True)
class Job:
    """One job and its store."""

    store: ObjectStore
    name: str
    size: Size

    def prepare(self, folder: Path) -> None:
        """Write the datasets, the parent version, and the spec of the first attempt."""
        spec = _model(self.size)
        publish_first(self.store, spec, self._dataset(folder, "first", 4 * self.size.batch_size))
        self._write_spec(
            JobSpec(
                job=self.name,
                attempt=1,
                model=self.name,
                version=2,
                parent=1,
                spec=spec,
                dataset=self._dataset(folder, "rows", self.size.rows),
            )
        )

    def _dataset(self, folder: Path, name: str, rows: int) -> DatasetManifest:
        path, key = folder / f"{name}.parquet", f"faults/{name}.parquet"
        _write_rows(path, rows)
        self.store.upload(path, key)
        shard = describe_shard(path, f"{self.store.uri}/{key}")
        pair = ModalityPair(first=_FIRST, second=_SECOND)
        return DatasetManifest(
            dataset=f"{self.name}-{name}", model=self.name, name=name, pair=pair, shards=(shard,)
        )

    def next_attempt(self, attempt: int) -> None:
        """Write the spec of the next attempt, from the newest checkpoint, as the control plane
        does."""
        spec = read_document(self.store, layout.run_spec(self.name, attempt - 1), JobSpec)
        found = self.checkpoints(attempt - 1)
        newest = found[-1] if found else spec.resume_from
        self._write_spec(spec.model_copy(update={"attempt": attempt, "resume_from": newest}))

    def command(self, attempt: int, ranks: int, min_ranks: int) -> list[str]:
        """Return the command line that the service submits to Ray."""
        return [
            *(sys.executable, "-m", "workers.train", "--store", self.store.uri),
            *("--job", self.name, "--attempt", str(attempt)),
            *("--ranks", str(ranks), "--min-ranks", str(min_ranks)),
        ]

    def progress(self, attempt: int) -> Progress | None:
        """Return the attempt's progress, or None before its first report."""
        shown = read_running(self.store)
        return shown.get(submission_id(self.name, attempt), Shown()).progress()

    def checkpoints(self, attempt: int) -> list[str]:
        """Return the keys, newest last."""
        return sorted(self.store.keys(layout.run_checkpoints(self.name, attempt)))

    def result(self, attempt: int) -> "Result":
        """Return the result. Raises ObjectNotFound if the attempt has none."""
        manifest = read_candidate(self.store, self.name, attempt)
        check_complete(self.store, manifest)
        heads = read_version_file(self.store, manifest, layout.HEADS)
        report = manifest.report
        return Result(manifest.files[layout.HEADS].sha256, heads, report.ranks, report.updates)

    def _write_spec(self, spec: JobSpec) -> None:
        key = layout.run_spec(spec.job, spec.attempt)
        self.store.put(key, spec.model_dump_json().encode())


@dataclass(frozen=True)
class Result:
    """Result of an attempt."""

    digest: str
    heads: bytes
    ranks: int
    updates: int

    def distance(self, other: "Result") -> float:
        """Return the largest difference of any entry of the heads."""
        ours, theirs = (safetensors.torch.load(each.heads) for each in (self, other))
        return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def _model(size: Size) -> ModelSpec:
    return ModelSpec(
        width=size.width,
        modalities=dict(zip((_FIRST, _SECOND), _WIDTHS, strict=True)),
        training=TrainingSpec(epochs=size.epochs, batch_size=size.batch_size),
        policy="preserve",
    )


def _write_rows(path: Path, rows: int) -> None:
    """Write correlated pairs: two random views of 32 latent numbers, plus noise."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(rows, 32)).astype(np.float32)
    columns: dict[str, pa.Array] = {"id": pa.array([f"row-{row}" for row in range(rows)])}
    for name, width in zip(("feature_a", "feature_b"), _WIDTHS, strict=True):
        view = generator.normal(size=(32, width)).astype(np.float32)
        noise = generator.normal(size=(rows, width)).astype(np.float32)
        values = pa.array((hidden @ view + noise).ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(values, width)
    # Small row groups, so that streaming reads from the store all the time.
    pq.write_table(pa.table(columns), path, row_group_size=1024)
