"""A dry run: what is odd in the features, how familiar they are, and reasons to refuse."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.drift import FEWEST_ROWS, DriftReport, DriftWindow, ModalityDrift
from cmcl.contract.job import JobSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import DatasetReport
from cmcl.storage import layout
from cmcl.storage.documents import write_document
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import publish_manifest, read_candidate, read_version
from tests.fakes.feature_shards import fetch
from tests.unit.benchmarks.tiny_stream import WIDTHS, features, labels, write_part
from workers.model.heads import unit_rows
from workers.nullspace.moments import SecondMoment, no_rows
from workers.nullspace.query_drift import QuerySum, on_grid
from workers.prepare.dry_run import dataset_outlook, familiarity
from workers.train.job import train_dataset
from workers.train.versions import read_moments

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


def test_familiarity_is_of_moments_that_the_job_then_summed(
    store: ObjectStore, tmp_path: Path
) -> None:
    """By NumPy, from the job's own moments: energy outside of the span of earlier features, relative to chance."""
    manifest, after = read_version(store, "m", 1), read_version(store, "m", 2)
    earlier, new = (read_moments(store, one.learned[-1]) for one in (manifest, after))
    values_I, vectors_II = np.linalg.eigh(earlier.second.sum_II.numpy())
    kept = np.cumsum(values_I[::-1]) / values_I.sum()
    rank = int(np.searchsorted(kept, manifest.spec.kept_energy)) + 1
    basis_IK = vectors_II[:, ::-1][:, :rank]
    sum_II = new.second.sum_II.numpy()
    outside = np.trace(sum_II) - np.trace(basis_IK.T @ sum_II @ basis_IK)
    chance = rank / len(sum_II)
    expected = 1 - outside / np.trace(sum_II[:-1, :-1]) / (1 - chance)
    pair = ModalityPair(first="a", second="t")
    found = outlook(store, shard_file(tmp_path, "two_at", 2), version=1, pair=pair)
    assert found.findings["t"].familiarity == pytest.approx(max(0, expected), abs=1e-6)
    assert found.findings["a"].familiarity is None
    assert found.refusals == ()


def test_features_of_another_encoder_are_less_familiar(store: ObjectStore, tmp_path: Path) -> None:
    first, second = features("x_vt", 7)
    path = tmp_path / "strange.parquet"
    # Columns in another order: as from another encoder of the same width.
    write_part(path, (first[:, np.random.default_rng(0).permutation(WIDTHS["v"])], second))
    usual = outlook(store, shard_file(tmp_path, "x_vt", 7)).findings
    strange = outlook(store, path).findings
    assert usual["v"].familiarity
    assert strange["v"].familiarity is not None
    assert strange["v"].familiarity < usual["v"].familiarity / 2
    assert strange["t"].familiarity == pytest.approx(usual["t"].familiarity)


def moment(rows_BI: torch.Tensor) -> SecondMoment:
    """Of rows at unit length, with the constant 1."""
    unit_BI = torch.nn.functional.normalize(rows_BI.double(), dim=1)
    return no_rows(13).add_rows_(torch.cat([unit_BI, torch.ones(len(unit_BI), 1)], dim=1))


def test_random_directions_are_not_familiar_and_old_ones_are() -> None:
    def rows(columns: slice, seed: int) -> torch.Tensor:
        rows_BI = torch.zeros(40, 12)
        random = torch.randn(40, 12, generator=torch.Generator().manual_seed(seed))
        rows_BI[:, columns] = random[:, columns]
        return rows_BI

    earlier = moment(rows(slice(0, 5), 20))
    inside, anywhere, outside = (
        familiarity(moment(rows(columns, 21)), earlier, kept_energy=1.0)
        for columns in (slice(0, 5), slice(0, 12), slice(5, 12))
    )
    assert inside == pytest.approx(1)
    assert anywhere < 0.1
    assert outside == 0


def test_a_model_without_free_entries_is_refused(tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "store")
    grow(other, tmp_path, spec_of(WIDTH, kept_energy=1.0), ("noise_vt",))
    found = outlook(other, shard_file(tmp_path, "noise_vt", 7), version=1)
    assert found.refusals == ("Nothing can be learned: all entries of both heads are blocked.",)
    assert found.findings["v"].familiarity == 1


def test_heads_that_are_solved_from_moments_are_never_full(tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "store")
    grow(other, tmp_path, spec_of(WIDTH, policy="improve"), ("one_vt",))
    found = outlook(other, shard_file(tmp_path, "noise_vt", 7), version=1)
    assert found.refusals == ()
    learned = outlook(other, shard_file(tmp_path, "one_vt", 1), version=1)
    for modality in ("v", "t"):
        assert found.findings[modality].familiarity is not None
        assert (learned.findings[modality].familiarity or 0) > 0.5


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
    assert parts.findings["v"].familiarity == pytest.approx(one.findings["v"].familiarity)
    assert parts.findings["v"].rows == one.findings["v"].rows == 64


def test_fewer_rows_than_a_batch_are_refused(store: ObjectStore, tmp_path: Path) -> None:
    first, second = features("x_vt", 7)
    path = tmp_path / "x.parquet"
    write_part(path, (first[:9], second[:9]), labels(9))
    found = outlook(store, path)
    assert any("has 9 rows and one batch takes 16" in refusal for refusal in found.refusals)
    assert found.findings["v"].familiarity is None
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


def test_a_modality_that_is_to_be_aligned_gets_a_forecast(tmp_path: Path) -> None:
    """In either order of the pair; not for a pair with another modality."""
    store = LocalStore(tmp_path / "store")
    modalities = {**WIDTHS, "w": {"width": WIDTHS["v"], "aligned_to": "v"}}
    spec = spec_of(WIDTH, policy="improve", lift=0, modalities=modalities)
    grow(store, tmp_path, spec, NAMES[:1])
    first, second = features("x_vt", 7)

    def advice(pair: ModalityPair, sides: tuple[np.ndarray, np.ndarray]) -> str:
        path = tmp_path / f"{pair.first}{pair.second}.parquet"
        write_part(path, sides, labels())
        return " ".join(outlook(store, path, version=1, pair=pair).advice)

    turned = first[:, ::-1].copy()
    for pair, sides in (("w", "v"), (turned, first)), (("v", "w"), (first, turned)):
        found = advice(ModalityPair(first=pair[0], second=pair[1]), sides)
        assert "Predicted from 64 pairs: R@10 is" in found
    text = ModalityPair(first="w", second="t")
    assert "Predicted" not in advice(text, (turned, second))


@pytest.mark.parametrize("version", [0, 1])
def test_pairs_that_are_mixed_up_are_named(tmp_path: Path, version: int) -> None:
    """Also in a dataset of one shard, and before the first version."""
    store = LocalStore(tmp_path / "store")
    spec = spec_of(WIDTH, policy="improve", lift=0)
    grow(store, tmp_path, spec, NAMES[:version])
    first, second = features("x_vt", 7)
    mixed = np.random.default_rng(1).permutation(second)
    path = tmp_path / "x.parquet"
    for sides, is_named in (((first, second), False), ((first, mixed), True)):
        write_part(path, sides, labels())
        shard = fetch(ShardRef(uri=path.as_uri()), tmp_path / "fetched.parquet")
        found = dataset_outlook(store, "m", version, spec, VT, [shard])
        assert any("mixed up" in words for words in found.advice) == is_named


def test_a_dataset_says_how_much_of_the_drift_it_covers(store: ObjectStore, tmp_path: Path) -> None:
    """Queries like its own rows are covered, and others are not."""
    strange = features("x_vt", 7)[0][:, ::-1].copy()
    unit_NF = unit_rows(torch.from_numpy(strange))
    mean_K = QuerySum(len(unit_NF), on_grid(unit_NF).sum(0)).mean_K
    window = DriftWindow(at=datetime.now(UTC), version=2, rows=FEWEST_ROWS, level=2)
    drift = ModalityDrift(windows=(window,), mean=tuple(mean_K.tolist()))
    key = layout.drift_report("m")
    write_document(store, key, DriftReport(model="m", modalities={"v": drift}))
    path = tmp_path / "like-queries.parquet"
    write_part(path, (strange, features("x_vt", 7)[1]))
    try:
        covers = outlook(store, path)
        covers_not = outlook(store, shard_file(tmp_path, "x_vt", 7))
    finally:
        store.delete(key)
    assert covers.covered_drift == {"v": pytest.approx(1.0)}
    assert any("100% of the drift" in each for each in covers.advice)
    assert covers_not.covered_drift["v"] < 0.5
    # Without drift nothing is said.
    assert outlook(store, path).covered_drift == {}
