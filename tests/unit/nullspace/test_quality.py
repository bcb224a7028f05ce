"""The quality certificate, from moments alone, equals brute force over all row pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.nullspace.references import in_double, quality_change
from workers.nullspace.certificate import (
    PairScores,
    PairWeights,
)
from workers.nullspace.moments import PairMoments, pair_moments

DOUBLE = torch.float64
Rows = tuple[Tensor, Tensor]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def rows() -> Rows:
    """Paired rows with common causes."""
    causes = random(0, 50, 4)
    return (
        causes @ random(1, 4, 9) + 0.3 * random(2, 50, 9) + 0.5,
        causes @ random(3, 4, 7) + 0.3 * random(4, 50, 7),
    )


@pytest.fixture
def moments(rows: Rows) -> PairMoments:
    return pair_moments(*rows)


@pytest.fixture
def learned(moments: PairMoments) -> PairWeights:
    """Heads under which true pairs score above zero: the leading part of the cross sum."""
    left, values, right = torch.linalg.svd(moments.cross_IJ / moments.count)
    root = values[:5].sqrt()[:, None]
    return PairWeights(root * left[:, :5].mT, root * right[:5])


def other_heads(seed: int, near: PairWeights, distance: float) -> PairWeights:
    return PairWeights(
        near.first_EI + distance * random(seed, 5, 9),
        near.second_EJ + distance * random(seed + 1, 5, 7),
    )


def scores(rows: Rows, heads: PairWeights) -> Tensor:
    return (rows[0] @ heads.first_EI.mT) @ (rows[1] @ heads.second_EJ.mT).mT


def brute_force(rows: Rows, then: PairWeights, now: PairWeights) -> float:
    before, after = scores(rows, then), scores(rows, now)
    size = after.square().mean() / before.square().mean()
    return float(size - 2 * after.diag().mean() / before.diag().mean())


@settings(max_examples=30)
@given(st.integers(10, 10_000), st.sampled_from([1e-4, 0.1, 1.0, 10.0]))
def test_quality_equals_brute_force_over_all_row_pairs(seed: int, distance: float) -> None:
    causes = random(seed, 40, 3)
    rows = (causes @ random(1, 3, 9) + 1, causes @ random(3, 3, 7) - 1)
    moments = pair_moments(*rows)
    left, _, right = torch.linalg.svd(moments.cross_IJ)
    then = PairWeights(left[:, :5].mT, right[:5])
    now = other_heads(seed + 1, then, distance)
    assert PairScores(moments).quality(then, now) == pytest.approx(
        brute_force(rows, then, now), rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("scale", [0.0, 0.25, 0.9, 1.1, 3.0])
def test_quality_along_its_own_ray_is_lowest_when_learned(
    moments: PairMoments, learned: PairWeights, scale: float
) -> None:
    scaled = PairWeights(scale * learned.first_EI, learned.second_EJ)
    assert PairScores(moments).quality(learned, scaled) == pytest.approx(scale**2 - 2 * scale)
    assert quality_change(moments, learned, scaled) == pytest.approx((scale - 1) ** 2)


def test_quality_does_not_depend_on_the_scale_of_features(
    rows: Rows, moments: PairMoments, learned: PairWeights
) -> None:
    """ImageBind's features have norms of 1 to 100."""
    now = other_heads(7, learned, 0.3)
    huge = pair_moments(100 * rows[0], rows[1])
    assert PairScores(huge).quality(learned, now) == pytest.approx(
        PairScores(moments).quality(learned, now)
    )


def test_float32_heads_are_certified_in_float64(moments: PairMoments, learned: PairWeights) -> None:
    single = PairWeights(learned.first_EI.float(), learned.second_EJ.float())
    near = other_heads(8, learned, 1e-3)
    now = PairWeights(near.first_EI.float(), near.second_EJ.float())
    exact = PairScores(moments).quality(in_double(single), in_double(now))
    assert PairScores(moments).quality(single, now) == exact


def test_a_dataset_that_was_never_learned_has_no_quality_to_lose(
    moments: PairMoments, learned: PairWeights
) -> None:
    """Nothing to measure against: all scores zero, or true pairs pushed apart."""
    nothing = PairWeights(torch.zeros(5, 9), torch.zeros(5, 7))
    apart = PairWeights(-learned.first_EI, learned.second_EJ)
    for then in (nothing, apart):
        assert PairScores(moments).quality(then, learned) == 0.0
        assert quality_change(moments, then, learned) == 0.0


def test_size_and_agreement_are_means_over_row_pairs(
    rows: Rows, moments: PairMoments, learned: PairWeights
) -> None:
    size, agreement = PairScores(moments).size_and_agreement(learned)
    assert size == pytest.approx(float(scores(rows, learned).square().mean()))
    assert agreement == pytest.approx(float(scores(rows, learned).diag().mean()))
