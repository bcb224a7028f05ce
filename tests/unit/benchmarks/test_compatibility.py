"""Old stored vectors against new queries: exact from moments, and as measured on rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.compatibility import Embedded, MixedScores, compatibility, measured_scores
from tests.unit.nullspace.references import rectangular_mask
from workers.nullspace.certificate import PairWeights
from workers.nullspace.compatibility import stored_change
from workers.nullspace.moments import SecondMoment, no_rows, pair_moments
from workers.nullspace.subspace import eigenbasis

DOUBLE = torch.float64
WIDTH, FIRST, SECOND = 12, 9, 7


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def weights(seed: int) -> PairWeights:
    return PairWeights(random(seed, WIDTH, FIRST), random(seed + 1, WIDTH, SECOND))


def low_rank_rows(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """40 rows of rank 3 on either side."""
    first = random(seed, 40, 3) @ random(seed + 1, 3, FIRST)
    return first, random(seed + 2, 40, 3) @ random(seed + 3, 3, SECOND)


def relative(now: torch.Tensor, then: torch.Tensor) -> float:
    return float(((now - then).square().mean() / then.square().mean()).sqrt())


def moment(rows_BI: torch.Tensor) -> SecondMoment:
    return no_rows(rows_BI.shape[1]).add_rows_(rows_BI)


def free_change(seed: int, inputs: SecondMoment, outputs: SecondMoment) -> torch.Tensor:
    """A random change of a head that the rectangular mask at full energy lets through."""
    ins, outs = eigenbasis(inputs), eigenbasis(outputs)
    change = random(seed, outs.width, ins.width) * rectangular_mask(outs, ins, 1.0)
    return outs.vectors_II @ change @ ins.vectors_II.mT


@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([1.0, 1e-3, 1e-6]))
def test_report_equals_brute_force_over_all_rows(seed: int, size: float) -> None:
    first, second = random(seed, 30, FIRST) + 0.5, random(seed + 1, 20, SECOND) - 0.5
    first, second = first[:20], second[:20]
    old, other = weights(seed + 2), weights(seed + 4)
    new = PairWeights(old.first_EI + size * other.first_EI, old.second_EJ - size * other.second_EJ)
    report = compatibility(pair_moments(first, second), old, new)
    stored, queries = first @ old.first_EI.mT, second @ old.second_EJ.mT
    stored_new, queries_new = first @ new.first_EI.mT, second @ new.second_EJ.mT
    before, after = stored @ queries.mT, stored_new @ queries_new.mT
    for found, scores in (
        (report.first_stored, stored @ queries_new.mT),
        (report.second_stored, stored_new @ queries.mT),
    ):
        assert found.against_old == pytest.approx(relative(scores, before), rel=1e-6)
        assert found.against_new == pytest.approx(relative(scores, after), rel=1e-6)
    assert report.both_new == pytest.approx(relative(after, before), rel=1e-6)
    worst = max(report.first_stored.against_old, report.second_stored.against_old)
    assert stored_change(pair_moments(first, second), old, new) == worst


def test_identical_versions_are_exactly_compatible() -> None:
    report = compatibility(pair_moments(*low_rank_rows(0)), weights(4), weights(4))
    assert report.first_stored == report.second_stored == MixedScores(0.0, 0.0)
    assert report.both_new == 0.0


def test_one_moved_head_leaves_the_other_index_untouched() -> None:
    old, other = weights(5), weights(7)
    report = compatibility(
        pair_moments(*low_rank_rows(9)), old, PairWeights(other.first_EI, old.second_EJ)
    )
    assert report.first_stored.against_old == 0.0
    assert report.second_stored.against_old == report.both_new > 0.1


def test_one_head_that_moved_where_it_may_keeps_all_scores() -> None:
    (first, second), old = low_rank_rows(13), weights(17)
    change = free_change(19, moment(second), moment(first).through(old.first_EI))
    new = PairWeights(old.first_EI, old.second_EJ + change)
    moments = pair_moments(first, second)
    assert change.norm() > 1
    assert stored_change(moments, old, new) < 1e-10
    assert compatibility(moments, old, new).both_new < 1e-10


def cross_and_own_scores(stored: PairWeights, queries: PairWeights) -> list[torch.Tensor]:
    """Scores of the old rows of seed 30: stored side u or v × query side u or v."""
    first, second = low_rank_rows(30)
    index = (first @ stored.first_EI.mT, second @ stored.second_EJ.mT)
    asked = (first @ queries.first_EI.mT, second @ queries.second_EJ.mT)
    return [query @ rows.mT for rows in index for query in asked]


def updated(now: PairWeights, published: list[PairWeights], seed: int) -> PairWeights:
    """Move both heads as far as the masks with these published versions allow."""
    first, second = (moment(rows) for rows in low_rank_rows(30))
    # Partner moments under today's heads; the other's for each head.
    first_outputs = second.through(now.second_EJ)
    second_outputs = first.through(now.first_EI)
    for version in published:
        # Spans that stored vectors lie in, added to the protected outputs: W S Wᵀ of both sides.
        spans = first.through(version.first_EI) + second.through(version.second_EJ)
        first_outputs, second_outputs = first_outputs + spans, second_outputs + spans
    return PairWeights(
        now.first_EI + free_change(seed, first, first_outputs),
        now.second_EJ + free_change(seed + 1, second, second_outputs),
    )


def test_published_spans_keep_all_four_kinds_of_scores() -> None:
    old = weights(34)
    new = updated(old, [old], seed=36)
    kept = cross_and_own_scores(old, new)
    for now, then in zip(kept, cross_and_own_scores(old, old), strict=True):
        assert relative(now, then) < 1e-10
    worst = stored_change(pair_moments(*low_rank_rows(30)), old, new)
    # From moments it is the root of a difference of squares, so of rounding of 1e-16 a root is left.
    assert worst < 1e-7


def test_without_published_spans_own_scores_move() -> None:
    old = weights(34)
    moved = cross_and_own_scores(old, updated(old, [], seed=36))
    changes = [
        relative(now, then) for now, then in zip(moved, cross_and_own_scores(old, old), strict=True)
    ]
    # Across the pair the partners' span suffices; within a modality it does not.
    assert max(changes[1], changes[2]) < 1e-10
    assert min(changes[0], changes[3]) > 1e-2


def test_an_index_survives_two_updates_by_its_own_version() -> None:
    one = weights(34)
    two = updated(one, [one], seed=36)
    three = updated(two, [one, two], seed=38)
    for stored in (one, two):
        kept = cross_and_own_scores(stored, three)
        for now, then in zip(kept, cross_and_own_scores(stored, stored), strict=True):
            assert relative(now, then) < 1e-9


def test_spans_of_todays_heads_alone_lose_an_older_index() -> None:
    one = weights(34)
    two = updated(one, [one], seed=36)
    three = updated(two, [two], seed=38)
    changes = [
        relative(now, then)
        for now, then in zip(
            cross_and_own_scores(one, three), cross_and_own_scores(one, one), strict=True
        )
    ]
    assert max(changes) > 1e-6


def test_unit_scores_are_counted_on_unit_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = (
        Embedded(*(torch.randn(20, 5, generator=generator, dtype=torch.float64) for _ in range(2)))
        for _ in range(2)
    )
    before_NN = (
        torch.nn.functional.normalize(old.first_NE, dim=1)
        @ torch.nn.functional.normalize(old.second_NE, dim=1).mT
    )
    mixed_NN = (
        torch.nn.functional.normalize(old.first_NE, dim=1)
        @ torch.nn.functional.normalize(new.second_NE, dim=1).mT
    )
    after_NN = (
        torch.nn.functional.normalize(new.first_NE, dim=1)
        @ torch.nn.functional.normalize(new.second_NE, dim=1).mT
    )
    found = measured_scores(old.unit, new.unit)
    assert found.first_stored.against_old == pytest.approx(
        float((mixed_NN - before_NN).norm() / before_NN.norm())
    )
    assert found.first_stored.against_new == pytest.approx(
        float((mixed_NN - after_NN).norm() / after_NN.norm())
    )
    assert found.both_new == pytest.approx(float((after_NN - before_NN).norm() / before_NN.norm()))
