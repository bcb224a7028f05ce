"""The certificate, from moments alone, equals brute force over all row combinations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.moments import pair_moments

DOUBLE = torch.float64


@pytest.fixture
def old_rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(60, 9, generator=generator, dtype=DOUBLE) + 0.5,
        torch.randn(60, 7, generator=generator, dtype=DOUBLE) - 0.5,
    )


def random_weights(seed: int) -> PairWeights:
    generator = torch.Generator().manual_seed(seed)
    return PairWeights(
        torch.randn(5, 9, generator=generator, dtype=DOUBLE),
        torch.randn(5, 7, generator=generator, dtype=DOUBLE),
    )


def scores(rows: tuple[torch.Tensor, torch.Tensor], weights: PairWeights) -> torch.Tensor:
    return (rows[0] @ weights.first_EI.mT) @ (rows[1] @ weights.second_EJ.mT).mT


def brute_force(
    rows: tuple[torch.Tensor, torch.Tensor], then: PairWeights, now: PairWeights
) -> float:
    before = scores(rows, then)
    return float(((scores(rows, now) - before).square().mean() / before.square().mean()).sqrt())


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_certificate_equals_brute_force(
    old_rows: tuple[torch.Tensor, torch.Tensor], size: float
) -> None:
    then, other = random_weights(1), random_weights(2)
    now = PairWeights(
        then.first_EI + size * other.first_EI, then.second_EJ - size * other.second_EJ
    )
    drift = PairScores(pair_moments(*old_rows)).drift(then, now)
    assert drift == pytest.approx(brute_force(old_rows, then, now), rel=1e-6)


def test_drift_is_exactly_zero_when_nothing_moved(
    old_rows: tuple[torch.Tensor, torch.Tensor],
) -> None:
    weights = random_weights(3)
    assert PairScores(pair_moments(*old_rows)).drift(weights, weights) == 0.0


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_drift_is_exact_when_only_one_head_moved(
    old_rows: tuple[torch.Tensor, torch.Tensor], size: float
) -> None:
    then, other = random_weights(6), random_weights(7)
    for now in (
        PairWeights(then.first_EI + size * other.first_EI, then.second_EJ),
        PairWeights(then.first_EI, then.second_EJ + size * other.second_EJ),
    ):
        drift = PairScores(pair_moments(*old_rows)).drift(then, now)
        assert drift == pytest.approx(brute_force(old_rows, then, now), rel=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1001, 2000))
def test_norm_change_equals_brute_force_over_rows(one: int, other: int) -> None:
    generator = torch.Generator().manual_seed(one)
    rows_BI = torch.randn(60, 9, generator=generator, dtype=DOUBLE) + 0.5
    then, now = random_weights(one).first_EI, random_weights(other).first_EI
    changes = PairScores(pair_moments(rows_BI, rows_BI)).norm_changes(
        PairWeights(then, then), PairWeights(now, now)
    )
    before, after = ((rows_BI @ head.mT).square().sum(1).mean().sqrt() for head in (then, now))
    expected = float(after / before) - 1
    assert changes == pytest.approx((expected, expected), abs=1e-6)


def test_norms_that_were_zero_have_no_relative_change(
    old_rows: tuple[torch.Tensor, torch.Tensor],
) -> None:
    scores, heads = PairScores(pair_moments(*old_rows)), random_weights(11)
    zeros = PairWeights(0 * heads.first_EI, 0 * heads.second_EJ)
    assert scores.norm_changes(zeros, zeros) == (0.0, 0.0)
    assert scores.norm_changes(zeros, heads) == (0.0, 0.0)
