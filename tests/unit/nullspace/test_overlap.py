"""What two versions have in common of their best results, expected from moments."""

import pytest
import torch
from torch import Tensor

from workers.model.loss import unit
from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.moments import pair_moments
from workers.nullspace.overlap import expected_overlap
from workers.train.evaluation import Best

ROWS, WIDTH, FEATURES = 400, 16, 24


def rows() -> tuple[Tensor, Tensor]:
    """Paired rows off the origin, with the constant 1."""
    random = torch.Generator().manual_seed(0)
    shared = torch.randn(ROWS, WIDTH, generator=random)
    sides = (
        shared @ torch.randn(WIDTH, FEATURES, generator=random)
        + torch.randn(ROWS, FEATURES, generator=random)
        + 1
        for _ in range(2)
    )
    first, second = (torch.cat([side, torch.ones(ROWS, 1)], dim=1) for side in sides)
    return first, second


def heads(seed: int) -> PairWeights:
    random = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(WIDTH, FEATURES + 1, generator=random) for _ in range(2))
    first[:, -1], second[:, -1] = -first[:, :-1].sum(1), -second[:, :-1].sum(1)
    return PairWeights(first, second)


def moved(size: float) -> tuple[PairWeights, PairWeights]:
    then, other = heads(1), heads(2)
    return then, PairWeights(
        then.first_EI + size * other.first_EI, then.second_EJ + size * other.second_EJ
    )


def embedded(weights: PairWeights) -> tuple[Tensor, Tensor]:
    first, second = rows()
    return unit(first @ weights.first_EI.mT), unit(second @ weights.second_EJ.mT)


def overlap(then: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> float:
    """Of queries and rows, by two versions."""
    before_QN, scores_QN = (queries @ rows.mT for queries, rows in (then, now))
    best = Best.from_scores(scores_QN, torch.arange(len(scores_QN)))
    return float(best.are_best_of(before_QN).double().mean())


@pytest.mark.parametrize("size", [0.05, 0.2, 0.5, 1.0, 3.0])
def test_overlap_is_expected_from_moments_within_a_twentieth(size: float) -> None:
    then, now = moved(size)
    ways = PairScores(pair_moments(*rows())).correlations(then, now)
    before, after = embedded(then), embedded(now)
    measured = overlap(before, after), overlap(before[::-1], after[::-1])
    for way, found in zip(ways, measured, strict=True):
        assert expected_overlap(way, ROWS) == pytest.approx(found, abs=0.05)


def test_a_correlation_is_that_of_the_scores_of_each_query_about_their_mean() -> None:
    then, now = moved(0.5)
    first, second = (side.double() for side in rows())
    scores = [
        (first @ each.first_EI.double().mT) @ (second @ each.second_EJ.double().mT).mT
        for each in (then, now)
    ]
    found = PairScores(pair_moments(*rows())).correlations(then, now)
    for way, dim in zip(found, (1, 0), strict=True):
        old, new = (each - each.mean(dim=dim, keepdim=True) for each in scores)
        assert way == pytest.approx(
            float((old * new).sum() / (old.square().sum() * new.square().sum()).sqrt()), abs=1e-6
        )


def test_a_version_equal_to_its_parent_has_all_results_in_common() -> None:
    then, _ = moved(0)
    scale = PairWeights(2 * then.first_EI, then.second_EJ)
    scores = PairScores(pair_moments(*rows()))
    for now in (then, scale):
        assert overlap(embedded(then), embedded(now)) == 1
        for way in scores.correlations(then, now):
            assert expected_overlap(way, 10**6) == pytest.approx(1, abs=1e-4)


def test_heads_that_score_nothing_have_nothing_in_common_with_those_that_do() -> None:
    then, _ = moved(0)
    zero = PairWeights(torch.zeros_like(then.first_EI), then.second_EJ)
    scores = PairScores(pair_moments(*rows()))
    assert scores.correlations(then, zero) == (0, 0)
    assert scores.correlations(zero, zero) == (1, 1)


@pytest.mark.parametrize("count", [1, 10, 11, 1000, 10**6])
def test_overlap_is_that_of_chance_without_a_correlation(count: int) -> None:
    assert expected_overlap(0, count) == pytest.approx(min(10 / count, 1), rel=1e-3)


def test_rows_that_tie_with_the_tenth_are_among_the_best() -> None:
    query = torch.tensor([[1.0, 0.0]]).repeat(20, 1)
    near = torch.tensor([[1.0, 0.0]]).repeat(20, 1)
    turned = near.flip(0)
    assert overlap((query, near), (query, turned)) == 1
