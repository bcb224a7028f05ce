"""A row that was erased from a dataset: the version is the one whose dataset never had it, of real rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import CannotCombine
from cmcl.contract.job import ErasedRow, Failure, JobSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import check_complete, publish_manifest, read_candidate
from tests.fakes.feature_shards import write_pair_shard
from workers.files.columns import FEATURES, float32_rows
from workers.methods import improve
from workers.train.job import train_dataset
from workers.train.versions import read_heads

# Speech lies in a narrow cone, so that its features are centred by those of the first dataset.
SPEC = ModelSpec(
    width=16,
    modalities={"image": 1280, "text": 384, "audio": 768},
    lift=48,
    erasable=True,
    training=TrainingSpec(batch_size=16),
)
STREAM = Path("examples/stream")
Sides = tuple[np.ndarray, np.ndarray]


def real_rows(name: str, rows: slice) -> Sides:
    table = pq.read_table(next(STREAM.glob(f"*{name}*.train.parquet"))).slice(
        rows.start, rows.stop - rows.start
    )
    first, second = (float32_rows(table.column(each).combine_chunks()) for each in FEATURES)
    return first, second


@pytest.fixture(scope="module", autouse=True)
def _short_polish() -> Iterator[None]:
    """A tenth of the updates: what is exact after some of them is exact after all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(improve, "_UPDATES", improve._UPDATES // 10)
        yield


@dataclass(frozen=True)
class Bench:
    """A model that learns and erases, in a store of its own."""

    folder: Path
    spec: ModelSpec = SPEC

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.folder / "store")

    def learn(
        self, version: int, pair: tuple[str, str], rows: Sides, held_out: Sides | None = None
    ) -> VersionManifest:
        shards = [
            write_pair_shard(self.folder / f"{version}-{part}.parquet", sides)
            for part, sides in enumerate((rows, held_out))
            if sides is not None
        ]
        dataset = DatasetManifest(
            dataset=f"ds-{version}",
            model="m",
            name=f"dataset-{version}",
            pair=ModalityPair(first=pair[0], second=pair[1]),
            shards=tuple(shards[:1]),
            evaluation_shards=tuple(shards[1:]),
        )
        self.store.put(layout.dataset_manifest(dataset.dataset), dataset.model_dump_json().encode())
        return self.run(version, dataset=dataset)

    def erase(self, version: int, dataset: str, rows: Sides, row: int) -> VersionManifest:
        erased = ErasedRow(
            dataset=dataset,
            row="",
            first=tuple(rows[0][row].tolist()),
            second=tuple(rows[1][row].tolist()),
            requested_at=datetime(2026, 12, 3, tzinfo=UTC),
            requested_by="key-1",
        )
        return self.run(version, kind="erase", erases=erased)

    def run(self, version: int, **what: object) -> VersionManifest:
        about = {"job": f"job-{version}", "attempt": 1, "model": "m", "version": version}
        job = JobSpec.model_validate(
            {**about, "parent": version - 1 or None, "spec": self.spec, **what}
        )
        self.store.put(layout.run_spec(job.job, 1), job.model_dump_json().encode())
        train_dataset(self.store.uri, job.job, 1, torch.device("cpu"))
        found = read_candidate(self.store, job.job, 1)
        check_complete(self.store, found)
        publish_manifest(self.store, found)
        return found


def bench_of(folder: Path, spec: ModelSpec = SPEC) -> Bench:
    folder.mkdir()
    return Bench(folder, spec)


def without(rows: Sides, gone: list[int]) -> Sides:
    first, second = (np.delete(side, gone, axis=0) for side in rows)
    return first, second


def scores(
    bench: Bench, manifest: VersionManifest, pair: tuple[str, str], rows: Sides
) -> torch.Tensor:
    heads = read_heads(bench.store, manifest)
    first, second = (
        heads.embed(name, torch.from_numpy(side)) for name, side in zip(pair, rows, strict=True)
    )
    return first @ second.mT


VT, VA = ("image", "text"), ("image", "audio")


def test_the_version_is_the_one_whose_dataset_never_had_the_row(tmp_path: Path) -> None:
    """Lifted, and centred by an earlier dataset; the row is there twice."""
    fashion, first = real_rows("fashion_vt", slice(0, 150)), real_rows("digits", slice(0, 150))
    rows = real_rows("digits", slice(150, 350))
    for side in rows:
        side[-1] = side[7]
    one, other = bench_of(tmp_path / "one"), bench_of(tmp_path / "other")
    for bench, second in ((one, rows), (other, without(rows, [7, 199]))):
        bench.learn(1, VT, fashion)
        bench.learn(2, VA, first)
        last = bench.learn(3, VA, second)
    erased = one.erase(4, "ds-3", rows, 7)
    assert read_heads(one.store, erased).conditioning["audio"].mean_F.any()
    line, never = erased.learned[-1], last.learned[-1]
    assert (line.rows, line.dataset, line.version) == (198, "ds-3", 3)
    # The bytes of what is kept are those of a dataset that never had the row.
    assert line.kept == never.kept
    assert line.kept.keys() == {"moments", "projections", "exact sums"}
    assert (line.ridges, line.significant_directions, line.halves) == (
        never.ridges,
        never.significant_directions,
        never.halves,
    )
    for pair, sides in ((VT, fashion), (VA, rows)):
        torch.testing.assert_close(
            scores(one, erased, pair, sides), scores(other, last, pair, sides), rtol=0, atol=1e-6
        )
    # It says so, and later versions go on from it.
    (receipt,) = line.erased
    assert (receipt.copies, receipt.version, receipt.job, receipt.requested_by) == (
        2,
        4,
        "job-4",
        "key-1",
    )
    assert receipt.before != receipt.after == (never.exact_sums and never.exact_sums.sha256)
    assert (erased.subject, erased.unlearned, erased.dataset) == (line, None, None)
    assert [each.reference for each in erased.learned] == [None, None, 4]
    assert {f"{name} of ds-3" for name in line.kept} < erased.own.keys()
    assert one.learn(5, VT, real_rows("fashion_vt", slice(150, 250))).erased_from is None


def refused(bench: Bench, version: int) -> str:
    failure = read_document(bench.store, layout.run_failure(f"job-{version}", 1), Failure)
    assert failure.reason == "cannot_combine"
    return failure.message


def test_what_cannot_be_erased_is_refused_by_name(tmp_path: Path) -> None:
    rows = real_rows("fashion_vt", slice(0, 60))
    bench = bench_of(tmp_path / "one")
    held_out = real_rows("fashion_vt", slice(50, 62))
    bench.learn(1, VT, rows, held_out)
    for row, sides, words in (
        (
            3,
            real_rows("fashion_vt", slice(60, 70)),
            "dataset 'dataset-1' (ds-1) has learned no row",
        ),
        # A row's features with another row's partner.
        (3, (rows[0], rows[1][::-1]), "has learned no row"),
        (55, rows, "is held out of dataset 'dataset-1'"),
        # It was never learned, but is kept.
        (11, held_out, "is held out of dataset 'dataset-1'"),
    ):
        with pytest.raises(CannotCombine):
            bench.erase(2, "ds-1", sides, row)
        assert words in refused(bench, 2)
        bench.store.delete(layout.run_failure("job-2", 1))
    assert bench.erase(2, "ds-1", rows, 3).learned[0].rows == 59
    # Held-out rows that are lost may have had the row.
    for lost in (
        bench.folder / "1-1.parquet",
        bench.folder / "store" / layout.dataset_manifest("ds-1"),
    ):
        kept = lost.read_bytes()
        lost.unlink()
        with pytest.raises(CannotCombine, match="holds out the row cannot be read"):
            bench.erase(3, "ds-1", rows, 4)
        lost.write_bytes(kept)
        bench.store.delete(layout.run_failure("job-3", 1))
    # What was erased was never in.
    with pytest.raises(CannotCombine, match="has learned no row"):
        bench.erase(3, "ds-1", rows, 3)


def test_a_model_that_is_not_erasable_keeps_no_exact_sums(tmp_path: Path) -> None:
    rows = real_rows("fashion_vt", slice(0, 60))
    bench = bench_of(tmp_path / "one", SPEC.model_copy(update={"erasable": False}))
    assert bench.learn(1, VT, rows).learned[0].exact_sums is None
    with pytest.raises(CannotCombine, match="has no exact sums"):
        bench.erase(2, "ds-1", rows, 3)
    with pytest.raises(ValueError, match="needs the policy improve"):
        ModelSpec(modalities={"a": 4, "b": 4}, policy="preserve", erasable=True)
