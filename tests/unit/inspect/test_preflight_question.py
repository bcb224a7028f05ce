"""A dataset before it is posted: the same numbers as the job would meet, and reasons to refuse."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmcl.contract.capacity import FULL_BELOW
from cmcl.contract.dataset import ShardRef
from cmcl.contract.modality import ModalityPair
from tests.unit.benchmarks.tiny_stream import WIDTHS, features, labels, write_part
from tests.unit.inspect.conftest import LOSSY, grow, shard_file, spec_of
from workers.inspect.preflight import DatasetOutlook, dataset_outlook
from workers.inspect.versions import Unanswerable, find_version
from workers.nullspace.mask import product_mask
from workers.nullspace.subspace import eigenbasis
from workers.storage.local import LocalStore
from workers.storage.object_store import ObjectStore
from workers.train.versions import read_heads, read_moments

VT = ModalityPair(first="v", second="t")


def asked(path: Path) -> ShardRef:
    return ShardRef(uri=path.as_uri())


def outlook(store: ObjectStore, *paths: Path, version: int = 2) -> DatasetOutlook:
    return dataset_outlook(store, "m", version, VT, [asked(path) for path in paths])


def test_open_entries_are_those_that_the_job_then_had(store: ObjectStore, tmp_path: Path) -> None:
    found = outlook(store, shard_file(tmp_path, "three_vt", 3))
    protection = find_version(store, "m", 3).report.protection
    for modality in ("v", "t"):
        met = 1 - protection[modality].blocked_share
        assert found.heads[modality].open_share == pytest.approx(met)
        # The pair comes again: its heads share what is free.
        assert met < found.heads[modality].moments.free_share
    assert not found.refused


def test_moments_are_those_that_the_job_then_summed(store: ObjectStore, tmp_path: Path) -> None:
    """Share of a dataset's energy in the span of the earlier ones, from the job's own moments."""
    manifest, after = find_version(store, "m", 1), find_version(store, "m", 2)
    earlier, new = (read_moments(store, one.learned[-1]) for one in (manifest, after))
    values_I, vectors_II = np.linalg.eigh(earlier.second.sum_II.numpy())
    kept, rank = np.cumsum(values_I[::-1]) / values_I.sum(), 0
    while kept[rank] < manifest.spec.protection.kept_energy:
        rank += 1
    basis_IK = vectors_II[:, ::-1][:, : rank + 1]
    sum_II = new.second.sum_II.numpy()
    inside = np.trace(basis_IK.T @ sum_II @ basis_IK) / np.trace(sum_II)
    pair = ModalityPair(first="a", second="t")
    shard = asked(shard_file(tmp_path, "two_at", 2))
    found = dataset_outlook(store, "m", 1, pair, [shard])
    assert found.heads["t"].moments.protected_share == pytest.approx(inside, abs=1e-6)
    assert found.heads["a"].moments.familiarity is None


def test_a_new_modality_is_conditioned_as_the_job_would(store: ObjectStore, tmp_path: Path) -> None:
    """Free entries afterwards are of this dataset alone, under its own conditioning."""
    pair = ModalityPair(first="a", second="t")
    shard = asked(shard_file(tmp_path, "two_at", 2))
    found = dataset_outlook(store, "m", 1, pair, [shard]).heads["a"]
    before, after = find_version(store, "m", 1), find_version(store, "m", 2)
    summed = read_moments(store, after.learned[-1])
    partners = summed.second.through(read_heads(store, before).weights["t"])
    free_EI = product_mask(
        eigenbasis(partners), eigenbasis(summed.first), before.spec.protection.kept_energy
    )
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
    protection = {"policy": "replay", "kept_energy": 0.999}
    grow(other, tmp_path, spec_of(LOSSY, protection=protection), ("one_vt",))
    found = outlook(other, shard_file(tmp_path, "noise_vt", 7), version=1)
    full = {
        name for name, head in found.heads.items() if head.moments.free_share_after < FULL_BELOW
    }
    reported = {words.partition(":")[0] for words in found.advice if "After this dataset" in words}
    assert reported == full != set()


def test_heads_that_are_solved_from_moments_are_never_full(tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "store")
    grow(other, tmp_path, spec_of(LOSSY, protection={}), ("one_vt",))
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


def broken(path: Path, case: str) -> Path:
    first, second = features("x_vt", 7)
    match case:
        case "NaN":
            first[5, 2] = np.nan
        case "zeros":
            second[6] = 0
        case "width":
            first = first[:, :-1]
        case "few rows":
            write_part(path, (first[:9], second[:9]), labels(9))
            return path
        case "no rows":
            write_part(path, (first[:0], second[:0]))
            return path
        case "no Parquet":
            path.write_bytes(b"not Parquet")
            return path
        case "integers":
            write_part(path, (first, second), dtype=np.int32)
            return path
    write_part(path, (first, second), labels())
    return path


@pytest.mark.parametrize(
    ("case", "words", "side", "count"),
    [
        ("NaN", "'feature_a' has NaN or infinity in row 5", "v", {"nan": 1}),
        ("zeros", "'feature_b' is all zeros in row 6", "t", {"zero_rows": 1}),
        ("width", "has width 11, the model declares 12", "v", {"width": 11}),
        ("few rows", "has 9 rows and one batch takes 16", "v", {"rows": 9}),
        ("integers", "'feature_a'", None, {}),
        ("no rows", "it has no rows", None, {}),
        ("no Parquet", "neither Parquet nor Arrow IPC", None, {}),
    ],
)
def test_what_would_be_refused_is_refused_with_the_same_message(
    store: ObjectStore,
    tmp_path: Path,
    case: str,
    words: str,
    side: str | None,
    count: dict[str, int],
) -> None:
    found = outlook(store, broken(tmp_path / "x.parquet", case))
    assert found.refused
    assert any(words in refusal for refusal in found.refusals)
    assert found.heads == {}
    if side is None:
        assert found.findings == {}
        return
    assert {name: getattr(found.findings[side], name) for name in count} == count


@pytest.mark.parametrize("missing", ["feature_a", "feature_b", "id"])
def test_a_missing_column_is_refused_by_its_name(
    store: ObjectStore, tmp_path: Path, missing: str
) -> None:
    path = shard_file(tmp_path, "x_vt", 7)
    pq.write_table(pq.read_table(path).drop_columns([missing]), path)
    (refusal,) = outlook(store, path).refusals
    assert f"column {missing!r} is missing" in refusal


def test_a_column_with_a_gap_or_twice_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    table = pq.read_table(shard_file(tmp_path, "x_vt", 7))
    twice, gap = tmp_path / "twice.parquet", tmp_path / "gap.parquet"
    pq.write_table(table.append_column("label", table.column("label")), twice)
    assert "more than once" in outlook(store, twice).refusals[0]
    values = table.column("feature_b").to_pylist()
    kind = table.schema.field("feature_b").type
    holed = pa.array([None, *values[1:]], kind)
    pq.write_table(table.set_column(table.column_names.index("feature_b"), "feature_b", holed), gap)
    found = outlook(store, gap)
    assert "missing values" in found.refusals[0]
    assert found.findings == {}


def test_odd_rows_that_can_be_learned_are_only_advice(store: ObjectStore, tmp_path: Path) -> None:
    first, second = features("x_vt", 7)
    first[:, 3] = 1.0
    second[1] = second[0]
    path = tmp_path / "odd.parquet"
    write_part(path, (first, second), labels())
    found = outlook(store, path)
    assert not found.refused
    assert any(words.startswith("v: 1 of 12 columns are constant") for words in found.advice)
    assert any(words.startswith("t: 1 of 64 rows repeat") for words in found.advice)


def test_a_shard_that_is_not_there_would_be_refused(store: ObjectStore, tmp_path: Path) -> None:
    (refusal,) = outlook(store, tmp_path / "nowhere.parquet").refusals
    assert refusal.endswith("nowhere.parquet: there is no such object")


def test_other_formats_are_read_as_preparation_does(store: ObjectStore, tmp_path: Path) -> None:
    first, second = features("x_vt", 7)
    path = tmp_path / "x.npz"
    np.savez(path, feature_a=first, feature_b=second)
    found, parquet = outlook(store, path), outlook(store, shard_file(tmp_path, "x_vt", 7))
    assert not found.refused
    assert found.findings == parquet.findings


def test_an_undeclared_modality_is_no_preflight(store: ObjectStore) -> None:
    pair = ModalityPair(first="v", second="smell")
    with pytest.raises(Unanswerable, match="no modality 'smell': it has v, t, a, unused"):
        dataset_outlook(store, "m", 1, pair, [])
