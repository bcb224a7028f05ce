"""A dry run: the same numbers as the job would meet, and reasons to refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cmcl.contract.capacity import FULL_BELOW
from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.job import JobSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import DatasetReport
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import publish_manifest, read_candidate, read_version
from tests.fakes.feature_shards import fetch
from tests.unit.benchmarks.tiny_stream import WIDTHS, features, labels, write_part
from workers.nullspace.mask import product_mask
from workers.nullspace.subspace import eigenbasis
from workers.prepare.dry_run import dataset_outlook
from workers.train.job import train_dataset
from workers.train.versions import read_heads, read_moments

VT = ModalityPair(first="v", second="t")


# The pair of the first dataset comes again; the second has no held-out rows.
NAMES = ("one_vt", "two_at", "three_vt")
WITHOUT_HELD_OUT = "two_at"
WIDTH = 6


def spec_of(width: int, **changes: Any) -> ModelSpec:
    """A model that is trained under a mask, unless `changes` say otherwise."""
    model = {
        "width": width,
        "modalities": {**WIDTHS, "unused": 5},
        "training": {"epochs": 20, "batch_size": 16, "learning_rate": 1e-2},
        "policy": "preserve",
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
        publish_manifest(store, read_candidate(store, job.job, 1))


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


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    """A model of three tiny datasets, made by the training job itself."""
    folder = tmp_path_factory.mktemp("dry-run")
    store = LocalStore(folder / "store")
    grow(store, folder, spec_of(WIDTH))
    return store


def outlook(
    store: ObjectStore, *paths: Path, version: int = 2, pair: ModalityPair = VT
) -> DatasetReport:
    shards = [fetch(ShardRef(uri=path.as_uri()), path.with_suffix(".fetched")) for path in paths]
    spec = read_version(store, "m", version).spec
    return dataset_outlook(store, "m", version, spec, pair, shards)


def test_open_entries_are_those_that_the_job_then_had(store: ObjectStore, tmp_path: Path) -> None:
    found = outlook(store, shard_file(tmp_path, "three_vt", 3))
    protection = read_version(store, "m", 3).report.protection
    for modality in ("v", "t"):
        met = 1 - protection[modality].blocked_share
        assert found.heads[modality].open_share == pytest.approx(met)
        # The pair comes again: its heads share what is free.
        assert met < (found.heads[modality].moments.free_share or 0)
    assert found.refusals == ()


def test_moments_are_those_that_the_job_then_summed(store: ObjectStore, tmp_path: Path) -> None:
    """Share of a dataset's energy in the span of the earlier ones, from the job's own moments."""
    manifest, after = read_version(store, "m", 1), read_version(store, "m", 2)
    earlier, new = (read_moments(store, one.learned[-1]) for one in (manifest, after))
    values_I, vectors_II = np.linalg.eigh(earlier.second.sum_II.numpy())
    kept, rank = np.cumsum(values_I[::-1]) / values_I.sum(), 0
    while kept[rank] < manifest.spec.kept_energy:
        rank += 1
    basis_IK = vectors_II[:, ::-1][:, : rank + 1]
    sum_II = new.second.sum_II.numpy()
    inside = np.trace(basis_IK.T @ sum_II @ basis_IK) / np.trace(sum_II)
    pair = ModalityPair(first="a", second="t")
    found = outlook(store, shard_file(tmp_path, "two_at", 2), version=1, pair=pair)
    assert found.heads["t"].moments.protected_share == pytest.approx(inside, abs=1e-6)
    assert found.heads["a"].moments.familiarity is None


def test_a_new_modality_is_conditioned_as_the_job_would(store: ObjectStore, tmp_path: Path) -> None:
    """Free entries afterwards are of this dataset alone, under its own conditioning."""
    pair = ModalityPair(first="a", second="t")
    found = outlook(store, shard_file(tmp_path, "two_at", 2), version=1, pair=pair).heads["a"]
    before, after = read_version(store, "m", 1), read_version(store, "m", 2)
    summed = read_moments(store, after.learned[-1])
    partners = summed.second.through(read_heads(store, before).weights["t"])
    free_EI = product_mask(eigenbasis(partners), eigenbasis(summed.first), before.spec.kept_energy)
    assert found.moments.free_share_after == float(free_EI.double().mean())
    assert found.open_share == found.moments.free_share == 1


def test_other_features_are_less_familiar(store: ObjectStore, tmp_path: Path) -> None:
    first, second = features("x_vt", 7)
    path = tmp_path / "strange.parquet"
    # Columns in another order: as from another encoder of the same width.
    write_part(path, (first[:, np.random.default_rng(0).permutation(WIDTHS["v"])], second))
    usual = outlook(store, shard_file(tmp_path, "x_vt", 7)).heads
    strange = outlook(store, path).heads
    for heads in (usual, strange):
        assert heads["v"].moments.familiarity is not None
    assert (strange["v"].moments.familiarity or 0) < (usual["v"].moments.familiarity or 0) / 2
    assert strange["t"].moments.familiarity == pytest.approx(usual["t"].moments.familiarity)


def test_a_head_that_will_be_full_is_reported(tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "store")
    grow(other, tmp_path, spec_of(WIDTH, kept_energy=0.999), ("one_vt",))
    found = outlook(other, shard_file(tmp_path, "noise_vt", 7), version=1)
    full = {
        name
        for name, head in found.heads.items()
        if (head.moments.free_share_after or 0) < FULL_BELOW
    }
    reported = {words.partition(":")[0] for words in found.advice if "After this dataset" in words}
    assert reported == full != set()


def test_heads_that_are_solved_from_moments_are_never_full(tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "store")
    grow(other, tmp_path, spec_of(WIDTH, policy="improve"), ("one_vt",))
    found = outlook(other, shard_file(tmp_path, "noise_vt", 7), version=1)
    for head in found.heads.values():
        moments = head.moments
        assert (head.open_share, moments.free_share, moments.free_share_after) == (1, 1, 1)
        assert moments.familiarity is not None
    assert found.heads
    learned = outlook(other, shard_file(tmp_path, "one_vt", 1), version=1)
    for head in learned.heads.values():
        assert head.moments.moment_distance == pytest.approx(0, abs=1e-5)
        assert (head.moments.familiarity or 0) > 0.5
    assert not [words for words in found.advice if "blocked" in words or "After this" in words]


def test_a_side_that_does_not_vary_is_refused_as_the_job_would(
    store: ObjectStore, tmp_path: Path
) -> None:
    first, second = features("x_vt", 7)
    path = tmp_path / "still.parquet"
    write_part(path, (first, np.ones_like(second) * second[:1]))
    assert any("have the same feature of 't'" in each for each in outlook(store, path).refusals)


def test_two_shards_count_as_one_dataset(store: ObjectStore, tmp_path: Path) -> None:
    whole = pq.read_table(shard_file(tmp_path, "x_vt", 7))
    for name, part in (("a", whole.slice(0, 40)), ("b", whole.slice(40))):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    parts = outlook(store, tmp_path / "a.parquet", tmp_path / "b.parquet")
    one = outlook(store, shard_file(tmp_path, "x_vt", 7))
    assert parts.findings == one.findings
    assert parts.heads["v"].moments.learnable_share == pytest.approx(
        one.heads["v"].moments.learnable_share
    )


def test_fewer_rows_than_a_batch_are_refused(store: ObjectStore, tmp_path: Path) -> None:
    first, second = features("x_vt", 7)
    path = tmp_path / "x.parquet"
    write_part(path, (first[:9], second[:9]), labels(9))
    found = outlook(store, path)
    assert any("has 9 rows and one batch takes 16" in refusal for refusal in found.refusals)
    assert found.heads == {}
    assert found.findings["v"].rows == 9


def test_odd_rows_that_can_be_learned_are_only_advice(store: ObjectStore, tmp_path: Path) -> None:
    first, second = features("x_vt", 7)
    first[:, 3] = 1.0
    second[1] = second[0]
    path = tmp_path / "odd.parquet"
    write_part(path, (first, second), labels())
    found = outlook(store, path)
    assert found.refusals == ()
    assert any(words.startswith("v: 1 of 12 columns are constant") for words in found.advice)
    assert any(words.startswith("t: 1 of 64 rows repeat") for words in found.advice)
