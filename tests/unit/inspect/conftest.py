"""A store with a model of three tiny datasets, made by the training job itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.job import JobSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from tests.fakes.feature_shards import fetch
from tests.unit.benchmarks.tiny_stream import WIDTHS, features, labels, write_part
from workers.storage import layout
from workers.storage.local import LocalStore
from workers.storage.object_store import ObjectStore
from workers.storage.versions import publish_files, read_candidate
from workers.train.job import train_dataset

# The pair of the first dataset comes again; the second has no held-out rows.
NAMES = ("one_vt", "two_at", "three_vt")
WITHOUT_HELD_OUT = "two_at"
LOSSY, ROOMY = 6, 24


def spec_of(width: int, **changes: Any) -> ModelSpec:
    """A model that is trained under a mask, unless `changes` say otherwise."""
    model = {
        "width": width,
        "modalities": {**WIDTHS, "unused": 5},
        "training": {"epochs": 20, "batch_size": 16, "learning_rate": 1e-2},
        "protection": {"policy": "replay"},
    }
    return ModelSpec.model_validate({**model, **changes})


def shard_file(folder: Path, name: str, seed: int) -> Path:
    """Features that hang together by class; of a name with `noise`, nothing but noise."""
    path = folder / f"{name}-{seed}.parquet"
    sides = features(name, seed)
    if "noise" in name:
        random = np.random.default_rng(seed)
        first, second = (random.normal(size=side.shape).astype(np.float32) for side in sides)
        sides = (first, second)
    write_part(path, sides, labels())
    return path


def grow(store: LocalStore, folder: Path, spec: ModelSpec, names: tuple[str, ...] = NAMES) -> None:
    """Learn the datasets, version by version, in one process."""
    for version, name in enumerate(names, start=1):
        job = JobSpec(
            job=f"job-{version}",
            attempt=1,
            model="m",
            version=version,
            parent=version - 1 or None,
            spec=spec,
            dataset=_dataset(folder, name, version),
        )
        manifest = job.learns.model_dump_json().encode()
        store.put(layout.dataset_manifest(job.learns.dataset), manifest)
        store.put(layout.run_spec(job.job, 1), job.model_dump_json().encode())
        train_dataset(store.uri, job.job, 1, torch.device("cpu"))
        publish_files(store, read_candidate(store, job.job, 1))


def _dataset(folder: Path, name: str, version: int) -> DatasetManifest:
    held_out = () if name == WITHOUT_HELD_OUT else (_shard(folder, name, 100 + version),)
    return DatasetManifest(
        dataset=f"ds-{version}",
        model="m",
        name=name,
        pair=ModalityPair(first=name[-2], second=name[-1]),
        shards=(_shard(folder, name, version),),
        evaluation_shards=held_out,
    )


def _shard(folder: Path, name: str, seed: int) -> Shard:
    path = shard_file(folder, name, seed)
    return fetch(ShardRef(uri=path.as_uri()), folder / "fetched.parquet")


Grown = Callable[[int], ObjectStore]


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """A store by the width of its model, grown once."""
    stores: dict[int, LocalStore] = {}

    def of_width(width: int) -> LocalStore:
        if width not in stores:
            folder = tmp_path_factory.mktemp(f"inspect-{width}")
            stores[width] = LocalStore(folder / "store")
            grow(stores[width], folder, spec_of(width))
        return stores[width]

    return of_width


@pytest.fixture
def store(grown: Grown) -> ObjectStore:
    """Embeddings narrower than features: the heads lose something."""
    return grown(LOSSY)


@pytest.fixture
def roomy_store(grown: Grown) -> ObjectStore:
    """Embeddings wider than features: the heads lose nothing."""
    return grown(ROOMY)
