"""What one more version costs when few and when many datasets are behind it: whole attempts, in one process.

The history is simulated: all datasets of a pair of modalities have the same moments and held-out rows, which has no part
in the cost. Six modalities have fifteen pairs. Shapes: N rows, F and G widths of the two sides' features.
"""

import tempfile
import time
from collections.abc import Sequence
from itertools import combinations, cycle, islice
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.command_line import log_progress
from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.job import JobSpec, submission_id
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LearnedDataset, VersionReport, datasets_to_measure
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.running import read_running
from cmcl.storage.versions import publish_manifest, write_blob
from workers.files.shards import Scratch, describe_shard
from workers.model.artifact import save_centred_moments
from workers.model.heads import ModalityHeads, initial_heads
from workers.model.memory import Chosen, Memory
from workers.nullspace.centred import CentredMoments, dataset_moments
from workers.train.dataset import training_rows
from workers.train.job import train_dataset
from workers.train.learn import ModelState, initial_state, moments_of_halves
from workers.train.run import Run
from workers.train.versions import Parent, version_manifest, write_files

# As by default, but for the centring, which the parent's heads would need.
_SPEC = ModelSpec(
    modalities={
        "audio": 768,
        "depth": 640,
        "image": 1280,
        "pose": 512,
        "text": 384,
        "video": 1024,
    },
    centred=False,
)
# Of the numbers that the rows of a pair share, and of their spectrum.
_SHARED, _DECAY, _NOISE = 100, 0.7, 0.3
_RIDGE, _SIGNIFICANT = 0.02, 32


class VersionCost(TypedDict):
    """Seconds of one more version, by phase; `measured`: the earlier datasets that it certified."""

    datasets: int
    measured: int
    seconds: float
    phases: dict[str, float]


def measure_growth(
    histories: Sequence[int], spec: ModelSpec = _SPEC, rows: int = 1000
) -> list[VersionCost]:
    """Return what one more version costs, by the number of datasets behind it (`histories`, in rising order)."""
    with tempfile.TemporaryDirectory(prefix="cmcl-growth-") as folder:
        history = _History(LocalStore(Path(folder, "store")), spec, Path(folder), rows)
        # The first one is measured twice: before it, the process still allocates and compiles.
        costs = [history.cost(each, n) for n, each in enumerate((histories[0], *histories))]
    return costs[1:]


class _History:
    """A store with what a dataset of each pair leaves behind, of which versions of any length are made."""

    def __init__(self, store: LocalStore, spec: ModelSpec, folder: Path, rows: int) -> None:
        self._store, self._spec = store, spec
        self._heads = initial_heads(spec)
        pairs = [ModalityPair(first=a, second=b) for a, b in combinations(sorted(spec.widths), 2)]
        self._datasets = {
            pair: _written(folder / f"{seed}", spec, pair, rows, seed)
            for seed, pair in enumerate(pairs, start=1)
        }
        self._sums = {
            pair: _sums(spec, self._heads, dataset) for pair, dataset in self._datasets.items()
        }
        self._moments = {
            pair: write_blob(store, save_centred_moments(sums)) for pair, sums in self._sums.items()
        }

    def cost(self, datasets: int, place: int) -> VersionCost:
        """Train a dataset of the first pair with so many behind it. `place`: a number for the name of the model."""
        log_progress(f"one more version with {datasets} datasets behind it")
        name = f"m{place}"
        lines = tuple(
            self._line(number, pair)
            for number, pair in enumerate(islice(cycle(self._datasets), datasets), start=1)
        )
        job = self._job(name, datasets + 1, next(iter(self._datasets.values())))
        before = self._job(name, datasets, job.learns)
        state = ModelState(self._heads, self._memory(datasets))
        files = write_files(self._store, state, before, Parent(initial_state(self._spec), ()))
        report = VersionReport(final_loss=1.0, updates=1, ranks=1)
        measured = datasets_to_measure(job, lines)
        # What an attempt reads of a past dataset: the heads of the version that learned it, and its held-out rows.
        for version in {datasets, *(line.version for line in measured)}:
            known = before.model_copy(update={"version": version})
            publish_manifest(
                self._store, version_manifest(known, files, lines[:version], {}, report)
            )
        for line in measured:
            manifest = self._datasets[line.pair].model_copy(update={"dataset": line.dataset})
            key = layout.dataset_manifest(line.dataset)
            self._store.put(key, manifest.model_dump_json().encode())
        self._store.put(layout.run_spec(job.job, 1), job.model_dump_json().encode())
        began = time.perf_counter()
        train_dataset(self._store.uri, job.job, 1, torch.device("cpu"))
        seconds = time.perf_counter() - began
        shown = read_running(self._store)[submission_id(job.job, 1)].progress()
        return {
            "datasets": datasets,
            "measured": len(measured),
            "seconds": round(seconds, 2),
            "phases": {}
            if shown is None
            else {phase: round(each, 2) for phase, each in shown.seconds.items()},
        }

    def _line(self, version: int, pair: ModalityPair) -> LearnedDataset:
        return LearnedDataset(
            dataset=f"ds-{version}",
            name=f"dataset {version}",
            pair=pair,
            rows=self._sums[pair].rows,
            version=version,
            moments=self._moments[pair],
            shard_digests=tuple(each.sha256 for each in self._datasets[pair].shards),
            ridges=dict.fromkeys(pair.modalities, _RIDGE),
            significant_directions=_SIGNIFICANT,
            attainable=float(self._spec.width),
        )

    def _job(self, model: str, version: int, dataset: DatasetManifest) -> JobSpec:
        return JobSpec(
            job=f"{model}-{version}",
            attempt=1,
            model=model,
            version=version,
            parent=version - 1,
            spec=self._spec,
            dataset=dataset.model_copy(update={"dataset": f"ds-{version}"}),
        )

    def _memory(self, datasets: int) -> Memory:
        """The memory of so many datasets, of the pairs in turn."""
        places = {
            pair: range(place, datasets, len(self._sums)) for place, pair in enumerate(self._sums)
        }
        counts = {pair: len(found) for pair, found in places.items() if found}
        ridges = dict[str, Chosen]()
        for pair, count in counts.items():
            for name in pair.modalities:
                ridges[name] = ridges.get(name, Chosen()) + Chosen((_RIDGE,) * count)
        return Memory(
            datasets={pair.modalities: count for pair, count in counts.items()},
            centred={
                pair.modalities: _repeated(self._sums[pair], count)
                for pair, count in counts.items()
            },
            ridges=ridges,
            significant={
                pair.modalities: Chosen((float(_SIGNIFICANT),) * count)
                for pair, count in counts.items()
            },
        )


def _repeated(sums: CentredMoments, count: int) -> CentredMoments:
    """The sum of so many equal datasets, by doubling."""
    if count == 1:
        return sums
    half = _repeated(sums, count // 2)
    return half + half + sums if count % 2 else half + half


def _sums(spec: ModelSpec, heads: ModalityHeads, dataset: DatasetManifest) -> CentredMoments:
    rows = training_rows(dataset, spec, scratch=Scratch())
    one, other = moments_of_halves(heads, dataset.pair, rows, Run())
    rows.close()
    return dataset_moments(one + other)


def _written(
    folder: Path, spec: ModelSpec, pair: ModalityPair, rows: int, seed: int
) -> DatasetManifest:
    """Random features of a pair that have something in common, with a spectrum that decays; a tenth is held out."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    shared_NS = random.standard_normal((rows, _SHARED)) * np.arange(1, _SHARED + 1) ** -_DECAY
    sides = []
    for width in (spec.widths[modality] for modality in pair.modalities):
        exact_NF = shared_NS @ random.standard_normal((_SHARED, width))
        sides.append(exact_NF + _NOISE * random.standard_normal((rows, width)))
    training, held_out = (
        _shard(folder / f"{name}.parquet", [side_NF[part] for side_NF in sides])
        for name, part in (("training", slice(rows // 10, None)), ("held-out", slice(rows // 10)))
    )
    return DatasetManifest(
        dataset="ds",
        model="m",
        name="dataset",
        pair=pair,
        shards=(training,),
        evaluation_shards=(held_out,),
    )


def _shard(path: Path, sides: Sequence[np.ndarray]) -> Shard:
    columns = {
        name: pa.FixedSizeListArray.from_arrays(
            pa.array(side_NF.astype(np.float32).reshape(-1)), side_NF.shape[1]
        )
        for name, side_NF in zip(("feature_a", "feature_b"), sides, strict=True)
    }
    ids = pa.array([f"{path.stem}-{row}" for row in range(len(sides[0]))])
    pq.write_table(pa.table({"id": ids, **columns}), path)
    return describe_shard(path, path.as_uri())
