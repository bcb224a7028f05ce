"""Sums over datasets are exact: the same bits in every order, and after a dataset was taken back."""

import random
from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.nullspace.centred import GRID, CentredMoments, dataset_moments
from workers.nullspace.moments import pair_moments

SEEDS = st.lists(st.integers(0, 10**6), min_size=2, max_size=6, unique=True)


def dataset(seed: int) -> CentredMoments:
    """Unit rows with the constant 1: from 20 to 3,000 of them, about means of their own."""
    generator = torch.Generator().manual_seed(seed)
    rows = 20 + seed % 2980
    sides = []
    for width in (5, 3):
        spread = 10.0 ** -(seed % 4)
        side = torch.randn(width, generator=generator) + spread * torch.randn(
            rows, width, generator=generator
        )
        side = torch.nn.functional.normalize(side, dim=1)
        sides.append(torch.cat([side, torch.ones(rows, 1)], dim=1))
    return dataset_moments(pair_moments(sides[0], sides[1]))


def assert_equal_bits(one: CentredMoments, other: CentredMoments) -> None:
    assert one.rows == other.rows
    for name in ("weights_D", "first_FF", "second_GG", "cross_FG"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.first_means_DF, other.first_means_DF)
    assert torch.equal(one.second_means_DG, other.second_means_DG)
    assert torch.equal(one.pooled.cross_IJ, other.pooled.cross_IJ)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_datasets_does_not_change_a_bit(
    seeds: list[int], order: random.Random
) -> None:
    datasets = [dataset(seed) for seed in seeds]
    shuffled = order.sample(datasets, len(datasets))
    assert_equal_bits(reduce(add, datasets), reduce(add, shuffled))


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(0, 5))
def test_a_dataset_that_is_taken_back_leaves_no_bit(seeds: list[int], which: int) -> None:
    datasets = [dataset(seed) for seed in seeds]
    gone = datasets[which % len(datasets)]
    rest = [each for each in datasets if each is not gone]
    assert_equal_bits(reduce(add, datasets) - gone, reduce(add, rest))


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_two_sites_add_up_to_their_union(seeds: list[int], cut: int) -> None:
    datasets = [dataset(seed) for seed in seeds]
    cut = min(cut, len(datasets) - 1)
    both = reduce(add, datasets[:cut]) + reduce(add, datasets[cut:])
    assert_equal_bits(both, reduce(add, datasets))


@pytest.mark.parametrize("copies", [2, 3])
def test_of_equal_datasets_one_is_taken_back(copies: int) -> None:
    one = dataset(7)
    total = reduce(add, [one] * copies)
    assert_equal_bits(total - one, reduce(add, [one] * (copies - 1)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_float32_holds_what_one_dataset_adds(seed: int) -> None:
    moments = dataset(seed)
    for sums in (moments.first_FF, moments.second_GG, moments.cross_FG):
        assert torch.equal(sums.float().double(), sums)
        assert torch.equal((sums / GRID).round() * GRID, sums)
    assert torch.equal(moments.first_FF, moments.first_FF.mT)
    assert_equal_bits(moments.swapped().swapped(), moments)
