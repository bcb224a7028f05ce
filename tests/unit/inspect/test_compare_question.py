"""Two versions side by side: what moments predict, what held-out rows say, by brute force."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from tests.unit.train.test_unlearn_and_merge import Bench
from workers.inspect.compare import (
    ComparedDataset,
    Comparison,
    Embedded,
    MeasuredPair,
    compare,
    measured_scores,
)
from workers.inspect.versions import Unanswerable, find_version, read_held_out
from workers.nullspace.compatibility import Compatibility, compatibility
from workers.nullspace.moments import pair_moments
from workers.storage.local import LocalStore
from workers.storage.object_store import ObjectStore
from workers.train.certify import weights_of
from workers.train.versions import read_heads


@pytest.mark.parametrize(("unlearned", "left"), [("a", ["b", "c"]), ("b", ["a", "c"])])
def test_datasets_that_stay_are_compared_after_another_one_was_unlearned(
    tmp_path: Path, unlearned: str, left: list[str]
) -> None:
    bench = Bench(LocalStore(tmp_path / "store"), tmp_path)
    bench.learn("m", "abc")
    bench.run("m", 4, unlearns=f"ds-{unlearned}")
    assert [each.name for each in compare(bench.store, "m", 3, 4).datasets] == left


@pytest.fixture
def found(store: ObjectStore) -> Comparison:
    return compare(store, "m", 1, 3)


def only(found: Comparison) -> tuple[ComparedDataset, MeasuredPair]:
    (dataset,) = found.datasets
    assert dataset.measured is not None
    return dataset, dataset.measured


def numbers(found: Compatibility) -> list[float]:
    first, second = found.first_stored, found.second_stored
    mixed = (first.against_old, first.against_new, second.against_old, second.against_new)
    return [*mixed, found.both_new]


def test_predicted_drift_is_that_of_the_certificate(store: ObjectStore, found: Comparison) -> None:
    certified = find_version(store, "m", 3).report.drift["ds-1"]
    assert only(found)[0].predicted.both_new == pytest.approx(certified.since_learned)
    assert compare(store, "m", 2, 3).datasets[0].predicted.both_new == pytest.approx(
        certified.against_parent
    )


def test_measured_scores_are_what_moments_of_those_rows_say(
    store: ObjectStore, found: Comparison
) -> None:
    """Two ways to the same numbers: all row combinations, and moments of the held-out rows."""
    old, new = (read_heads(store, find_version(store, "m", version)) for version in (1, 3))
    learned = find_version(store, "m", 1).learned[0]
    held_out = read_held_out(store, learned)
    assert held_out is not None
    first_BI = old.prepare("v", held_out.rows.first_NI).double()
    second_BJ = old.prepare("t", held_out.rows.second_NJ).double()
    expected = compatibility(
        pair_moments(first_BI, second_BJ),
        weights_of(learned.pair, old),
        weights_of(learned.pair, new),
    )
    _, measured = only(found)
    assert numbers(measured.scores) == pytest.approx(numbers(expected), rel=1e-4)
    assert min(numbers(measured.scores)) > 0.01


def test_overlap_counts_the_ten_best_of_each_query(store: ObjectStore, found: Comparison) -> None:
    old, new = (read_heads(store, find_version(store, "m", version)) for version in (1, 3))
    held_out = read_held_out(store, find_version(store, "m", 1).learned[0])
    assert held_out is not None
    stored_NE = old.embed("v", held_out.rows.first_NI)
    best = [
        (heads.embed("t", held_out.rows.second_NJ) @ stored_NE.mT).topk(10, dim=1).indices.tolist()
        for heads in (old, new)
    ]
    kept = sum(len(set(then) & set(now)) for then, now in zip(*best, strict=True))
    _, measured = only(found)
    assert measured.first_stored_overlap == pytest.approx(kept / (10 * len(stored_NE)))
    assert measured.first_stored_overlap < 1


def test_unit_scores_are_counted_on_unit_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = (
        Embedded(*(torch.randn(20, 5, generator=generator, dtype=torch.float64) for _ in range(2)))
        for _ in range(2)
    )
    before_NN = normalize(old.first_NE, dim=1) @ normalize(old.second_NE, dim=1).mT
    mixed_NN = normalize(old.first_NE, dim=1) @ normalize(new.second_NE, dim=1).mT
    after_NN = normalize(new.first_NE, dim=1) @ normalize(new.second_NE, dim=1).mT
    found = measured_scores(old.unit, new.unit)
    assert found.first_stored.against_old == pytest.approx(
        float((mixed_NN - before_NN).norm() / before_NN.norm())
    )
    assert found.first_stored.against_new == pytest.approx(
        float((mixed_NN - after_NN).norm() / after_NN.norm())
    )
    assert found.both_new == pytest.approx(float((after_NN - before_NN).norm() / before_NN.norm()))


def test_an_unchanged_head_changes_no_scores_of_its_side(store: ObjectStore) -> None:
    """Version 3 learns v,t: the head of a does not change, so stored t are compared with old queries of a."""
    second = compare(store, "m", 2, 3).datasets[1]
    assert second.name == "two_at"
    assert second.predicted.second_stored.against_old == 0
    assert second.predicted.first_stored.against_new == 0
    assert second.predicted.first_stored.against_old > 0
    assert second.measured is None


def test_a_version_agrees_with_itself(store: ObjectStore) -> None:
    _, measured = only(compare(store, "m", 1, 1))
    assert numbers(measured.scores) == numbers(measured.unit_scores) == [0.0] * 5
    assert measured.first_stored_overlap == measured.second_stored_overlap == 1


def test_only_datasets_that_both_learned_are_compared(store: ObjectStore) -> None:
    names = [dataset.name for dataset in compare(store, "m", 3, 2).datasets]
    assert names == ["one_vt", "two_at"]
    with pytest.raises(Unanswerable, match="no version 9"):
        compare(store, "m", 1, 9)
