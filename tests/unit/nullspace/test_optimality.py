"""The lowest loss that any two heads of a width reach on a dataset: by moments, and by brute force."""

import pytest
import torch
from torch import Tensor

from tests.unit.nullspace.references import size_and_agreement
from workers.nullspace.certificate import (
    PairScores,
    PairWeights,
    attainable,
)
from workers.nullspace.moments import PairMoments, pair_moments

DOUBLE = torch.float64


def moments_of(rows: int, widths: tuple[int, int] = (7, 5)) -> PairMoments:
    generator = torch.Generator().manual_seed(rows)
    shared = torch.randn(rows, 4, generator=generator, dtype=DOUBLE)
    first, second = (
        shared @ torch.randn(4, width, generator=generator, dtype=DOUBLE)
        + torch.randn(rows, width, generator=generator, dtype=DOUBLE)
        for width in widths
    )
    return pair_moments(first, second)


def weights(width: int, seed: int = 1) -> PairWeights:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(width, w, generator=generator, dtype=DOUBLE) for w in (7, 5))
    return PairWeights(first, second)


def trained(moments: PairMoments, then: PairWeights, width: int) -> float:
    """The loss after minimising it by L-BFGS from a random start."""
    a, b = (float(value) for value in size_and_agreement(moments, then))
    start = weights(width, seed=2)
    sides: list[Tensor] = [
        start.first_EI.clone().requires_grad_(),
        start.second_EJ.clone().requires_grad_(),
    ]
    optimizer = torch.optim.LBFGS(
        sides,
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        size, agreement = size_and_agreement(moments, PairWeights(sides[0], sides[1]))
        value = size / a - 2 * agreement / b
        value.backward()
        return value

    optimizer.step(loss)
    return float(loss().detach())


@pytest.mark.parametrize("width", [1, 2, 4])
def test_training_reaches_the_lowest_loss_and_none_below(width: int) -> None:
    moments = moments_of(200)
    then = weights(width)
    # Heads whose true pairs score above zero, so that there is a scale to measure by.
    if float(size_and_agreement(moments, then)[1]) < 0:
        then = PairWeights(-then.first_EI, then.second_EJ)
    best = PairScores(moments).lowest_loss(then, attainable(moments, width))
    assert trained(moments, then, width) == pytest.approx(best, rel=1e-6)
    assert best <= PairScores(moments).quality(then, then) == pytest.approx(-1)


def test_wider_heads_reach_more_until_nothing_is_left() -> None:
    moments = moments_of(200)
    found = [attainable(moments, width) for width in range(1, 8)]
    assert found == sorted(found)
    assert found[4] == pytest.approx(found[6])


def test_fewer_rows_than_features_can_be_learned_by_heart() -> None:
    assert attainable(moments_of(4), 16) == pytest.approx(4)


@pytest.mark.parametrize("rows", [5, 8, 10, 11, 12])
def test_correlations_of_few_rows_are_those_of_the_rows(rows: int) -> None:
    """By canonical correlations of the rows themselves: cosines between what both sides span."""
    generator = torch.Generator().manual_seed(rows)
    first, second = (
        torch.randn(rows, width, generator=generator, dtype=DOUBLE) for width in (7, 5)
    )
    bases = [torch.linalg.qr(side).Q for side in (first, second)]
    expected = torch.linalg.svdvals(bases[0].mT @ bases[1]).square()
    for width in range(1, 6):
        found = attainable(pair_moments(first, second), width)
        assert found == pytest.approx(float(expected[:width].sum()), abs=1e-6)


def test_heads_that_learned_nothing_have_no_lowest_loss() -> None:
    moments = moments_of(200)
    nothing = PairWeights(torch.zeros(2, 7, dtype=DOUBLE), torch.zeros(2, 5, dtype=DOUBLE))
    assert PairScores(moments).lowest_loss(nothing, attainable(moments, 2)) == 0


def test_with_as_many_common_dimensions_as_the_width_the_matrices_are_not_decomposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That takes longer than learning does, and the answer is the width."""
    moments = moments_of(6)
    monkeypatch.setattr(torch.linalg, "eigh", None)
    assert attainable(moments, 4) == 4


def test_features_that_are_there_several_times_add_nothing() -> None:
    """Some of them are as many as are needed, but have too small a rank."""
    generator = torch.Generator().manual_seed(1)
    sides = [torch.randn(20, 10, generator=generator, dtype=DOUBLE) for _ in range(2)]
    repeated = [side.repeat_interleave(4, dim=1) for side in sides]
    assert attainable(pair_moments(*repeated), 8) == pytest.approx(
        attainable(pair_moments(*sides), 8), abs=1e-5
    )


def test_ranks_of_some_features_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, eigenvalues = list[int](), torch.linalg.eigvalsh

    def measured(side_II: Tensor) -> Tensor:
        sizes.append(len(side_II))
        return eigenvalues(side_II)

    monkeypatch.setattr(torch.linalg, "eigvalsh", measured)
    assert attainable(moments_of(20, (60, 40)), 8) == 8
    assert sizes == [21, 14]
