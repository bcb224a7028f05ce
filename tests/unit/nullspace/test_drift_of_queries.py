"""Queries that are not of what was learned are told from those that are, from sums alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from workers.nullspace.query_drift import (
    KnownDataset,
    QuerySum,
    Reference,
    nearest_mixture,
    on_grid,
    projected,
    sums_of_halves,
)

WIDTH = 96
ROWS = 256


def rows_near(center: int, rows: int, seed: int, spread: float = 1.0) -> Tensor:
    """Rows at unit length about an axis, of which each dataset has another one."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.randn(WIDTH, generator=torch.Generator().manual_seed(center))
    axis = axis / axis.norm()
    noise = torch.randn(rows, WIDTH, generator=generator) * (spread / WIDTH**0.5)
    return torch.nn.functional.normalize(axis + noise, dim=1)


def query_sum(rows_BF: Tensor) -> QuerySum:
    return QuerySum(len(rows_BF), on_grid(rows_BF).sum(0))


def known(center: int, copies: int = 1, rows: int = 3000) -> KnownDataset:
    rows_NF = rows_near(center, rows // copies, center).repeat_interleave(copies, 0)
    # Equal rows are in the same half.
    in_second_N = torch.arange(len(rows_NF)) // copies % 2 == 1
    return KnownDataset.from_halves(sums_of_halves(projected(rows_NF), in_second_N))


REFERENCE = Reference([known(1), known(2)])


def level(rows_BF: Tensor, reference: Reference = REFERENCE, false_alarms: float = 1e-4) -> float:
    return reference.deviation(query_sum(rows_BF).mean_K, len(rows_BF), false_alarms).level


@pytest.mark.parametrize(
    ("queries", "drifts"),
    [
        (lambda seed: rows_near(1, ROWS, seed), False),
        (lambda seed: torch.cat([rows_near(1, 180, seed), rows_near(2, 76, seed + 50)]), False),
        (lambda seed: rows_near(3, ROWS, seed), True),
        # A quarter is of a dataset that was not learned.
        (lambda seed: torch.cat([rows_near(1, 192, seed), rows_near(3, 64, seed + 50)]), True),
        # About the same mean direction, narrower or wider.
        (lambda seed: rows_near(1, ROWS, seed, spread=0.7), True),
        (lambda seed: rows_near(1, ROWS, seed, spread=1.4), True),
    ],
    ids=["known", "mixed", "unseen", "a quarter unseen", "narrower", "wider"],
)
def test_only_queries_of_something_else_are_drift(
    queries: Callable[[int], Tensor], drifts: bool
) -> None:
    assert {level(queries(seed)) > 1 for seed in range(100, 120)} == {drifts}


def test_false_alarms_are_as_many_as_permitted() -> None:
    alarms = sum(
        level(rows_near(1 + seed % 2, ROWS, 1000 + seed), false_alarms=0.05) > 1
        for seed in range(600)
    )
    assert 15 <= alarms <= 60


def test_a_mean_over_few_different_rows_permits_more() -> None:
    once, often = known(1), known(1, copies=20)
    assert once.factor < 2
    assert often.factor > 5
    # New rows of the same kind, of which the 150 that were learned say less than 3,000 would.
    fresh = rows_near(1, ROWS, 7)
    assert (
        level(fresh, Reference([often])) < 1 < level(fresh, Reference([replace(often, factor=1.0)]))
    )


def test_shares_are_those_of_the_mixture() -> None:
    queries = torch.cat([rows_near(1, 180, 5), rows_near(2, 76, 6)])
    shares_D = REFERENCE.deviation(query_sum(queries).mean_K, ROWS, 1e-4).shares_D
    assert float(shares_D[0]) == pytest.approx(180 / 256, abs=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_mixture_is_nearer(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    means_DK = torch.randn(6, 9, generator=generator).double()
    target_K = torch.randn(9, generator=generator).double() + means_DK[:3].mean(0)
    shares_D = nearest_mixture(means_DK, target_K)
    assert float(shares_D.min()) >= 0
    assert float(shares_D.sum()) == pytest.approx(1)
    slope_D = means_DK @ (shares_D @ means_DK - target_K)
    # The condition of a minimum: no dataset lies farther in the direction of the target.
    assert float(slope_D.min()) >= float(shares_D @ slope_D) - 1e-9


def test_sums_have_the_same_bits_in_every_order() -> None:
    rows_NF = rows_near(1, 999, 3)
    parts = [query_sum(part) for part in rows_NF.flip(0).split([1, 500, 498])]
    whole, added = query_sum(rows_NF), parts[2] + (parts[0] + parts[1])
    assert torch.equal(whole.sum_F, added.sum_F)
    # Whole numbers, of which float64 adds 2³⁷ rows without rounding.
    assert torch.equal(whole.sum_F, whole.sum_F.round())
    in_second_N = torch.arange(999) % 3 == 0
    halves_2II = sums_of_halves(projected(rows_NF), in_second_N)
    pieces = zip(rows_NF.split(100), in_second_N.split(100), strict=True)
    again = [sums_of_halves(projected(rows), mask) for rows, mask in pieces]
    assert torch.equal(halves_2II, torch.stack(again[::-1]).sum(0))


def test_without_a_dataset_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="no dataset"):
        Reference([])
