"""Moments are sums: they are exact for any order, grouping or weights."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.nullspace.moments import PairMoments, no_rows, pair_moments

DOUBLE = torch.float64


def rows(seed: int, count: int = 40, widths: tuple[int, int] = (5, 3)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, width, generator=generator, dtype=DOUBLE) for width in widths]


def assert_same(left: PairMoments, right: PairMoments) -> None:
    assert left.count == right.count
    torch.testing.assert_close(left.first.sum_II, right.first.sum_II)
    torch.testing.assert_close(left.second.sum_II, right.second.sum_II)
    torch.testing.assert_close(left.cross_IJ, right.cross_IJ)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 40), max_size=4), st.integers(0, 1000))
def test_moments_do_not_depend_on_how_rows_are_split(cuts: list[int], seed: int) -> None:
    first, second = rows(seed)
    bounds = [0, *sorted(cuts), 40]
    parts = [
        pair_moments(first[start:stop], second[start:stop]) for start, stop in pairwise(bounds)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert_same(total, pair_moments(first, second))


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1001, 2000))
def test_subtracting_a_dataset_gives_back_the_others(one: int, other: int) -> None:
    kept, removed = pair_moments(*rows(one)), pair_moments(*rows(other))
    assert_same((kept + removed) - removed, kept)


def test_pushed_moments_equal_moments_of_embeddings() -> None:
    first, _ = rows(3)
    weight_EI = torch.randn(4, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(4))
    pushed = no_rows(first.shape[1]).add_rows_(first).through(weight_EI)
    embeddings = first @ weight_EI.mT
    torch.testing.assert_close(pushed.sum_II, embeddings.mT @ embeddings)


def test_swapping_sides_twice_changes_nothing() -> None:
    moments = pair_moments(*rows(5))
    assert_same(moments.swapped().swapped(), moments)
    torch.testing.assert_close(moments.swapped().cross_IJ, moments.cross_IJ.mT)


def test_float32_rows_lose_less_than_a_millionth() -> None:
    first, _ = (side.float() for side in rows(6, count=20_000))
    exact = first.double().mT @ first.double()
    error = (
        no_rows(first.shape[1]).add_rows_(first).sum_II - exact
    ).abs().max() / exact.abs().max()
    assert error < 1e-6


def test_sides_of_unequal_length_are_refused() -> None:
    first, second = rows(7)
    with pytest.raises(ValueError, match="40 first rows but 39 second rows"):
        pair_moments(first, second[:39])
