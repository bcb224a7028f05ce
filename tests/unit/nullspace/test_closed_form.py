"""The closed form is a function of the sum of all moments: orders, sites and rotations do not matter."""

import random
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from operator import add

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.nullspace.centred import (
    CentredMoments,
    PairNames,
    centred,
    dataset_weight,
    pooled,
)
from workers.nullspace.closed_form import SMALLEST_RIDGE, Solution, root, solve
from workers.nullspace.moments import pair_moments

DOUBLE = torch.float64
WIDTHS = {"audio": 6, "depth": 5, "image": 9, "text": 7}
# A triangle and a modality that hangs on it.
PAIRS: Sequence[PairNames] = (
    ("audio", "image"),
    ("audio", "text"),
    ("image", "text"),
    ("depth", "image"),
    ("image", "text"),
)
RIDGES, WIDTH = dict.fromkeys(WIDTHS, 0.05), 4

Dataset = tuple[PairNames, CentredMoments]
Pairs = Mapping[PairNames, CentredMoments]


def rows_of(pair: PairNames, seed: int, rows: int = 40, latent: int = 3) -> list[Tensor]:
    """Both sides of a row come from the same numbers; each dataset has its own means."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    shared = noise(rows, latent)
    mixing = {
        name: torch.randn(
            latent, width, generator=torch.Generator().manual_seed(width), dtype=DOUBLE
        )
        for name, width in WIDTHS.items()
    }
    return [
        shared @ mixing[name] + 0.5 * noise(rows, WIDTHS[name]) + noise(WIDTHS[name])
        for name in pair
    ]


def moments_of(first: Tensor, second: Tensor) -> CentredMoments:
    ones = torch.ones(len(first), 1, dtype=DOUBLE)
    homogeneous = [torch.cat([side, ones], dim=1) for side in (first, second)]
    return centred(pair_moments(homogeneous[0], homogeneous[1]), dataset_weight(len(first)))


def stream(seed: int) -> list[Dataset]:
    return [
        (pair, moments_of(*rows_of(pair, 100 * seed + number))) for number, pair in enumerate(PAIRS)
    ]


def summed(datasets: Sequence[Dataset]) -> Pairs:
    total: dict[PairNames, CentredMoments] = {}
    for pair, moments in datasets:
        total[pair] = total[pair] + moments if pair in total else moments
    return total


def solved(pairs: Pairs, wanted: int = WIDTH) -> Solution:
    return solve(pooled(pairs), RIDGES, wanted, DOUBLE)


def scores(solution: Solution) -> dict[PairNames, Tensor]:
    """W_uᵀ W_v of all pairs: what is the same for every basis of the embeddings."""
    found: dict[PairNames, Tensor] = {}
    for group in solution.groups:
        weights = group.weights(group.scaling(WIDTH))
        found |= {(u, v): weights[u].mT @ weights[v] for u in weights for v in weights}
    return found


def assert_same_scores(one: Solution, other: Solution) -> None:
    ours, theirs = scores(one), scores(other)
    assert ours.keys() == theirs.keys()
    for pair, score in ours.items():
        torch.testing.assert_close(score, theirs[pair], rtol=1e-6, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(seed: int, order: random.Random) -> None:
    datasets = stream(seed)
    shuffled = order.sample(datasets, len(datasets))
    assert_same_scores(solved(summed(datasets)), solved(summed(shuffled)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_merging_two_sites_equals_their_union(seed: int, cut: int) -> None:
    datasets = stream(seed)
    one, other = summed(datasets[:cut]), summed(datasets[cut:])
    both = {
        pair: reduce(add, [site[pair] for site in (one, other) if pair in site])
        for pair in one.keys() | other.keys()
    }
    assert_same_scores(solved(both), solved(summed(datasets)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_subtracting_a_dataset_equals_never_having_seen_it(seed: int) -> None:
    *others, (pair, moments) = stream(seed)
    total = dict(summed([*others, (pair, moments)]))
    total[pair] = total[pair] - moments
    assert_same_scores(solved(total), solved(summed(others)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(sorted(WIDTHS)))
def test_rotating_the_features_of_a_modality_changes_no_score(seed: int, rotated: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = WIDTHS[rotated]
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=DOUBLE)).Q
    datasets = []
    for number, pair in enumerate(PAIRS):
        sides = rows_of(pair, 100 * seed + number)
        turned = [
            side @ rotation if name == rotated else side
            for name, side in zip(pair, sides, strict=True)
        ]
        datasets.append((pair, moments_of(*turned)))
    straight, turned_scores = scores(solved(summed(stream(seed)))), scores(solved(summed(datasets)))
    # Of homogeneous features: the constant 1 does not rotate.
    whole = torch.block_diag(rotation, torch.ones(1, 1, dtype=DOUBLE))
    for (first, second), score in turned_scores.items():
        back = whole @ score if first == rotated else score
        back = back @ whole.mT if second == rotated else back
        torch.testing.assert_close(back, straight[first, second], rtol=1e-6, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_equal_moments_give_equal_heads_to_the_bit(seed: int) -> None:
    one, other = solved(summed(stream(seed))), solved(summed(stream(seed)))
    for ours, theirs in zip(one.groups, other.groups, strict=True):
        assert all(torch.equal(ours.heads[name], theirs.heads[name]) for name in ours.heads)


def test_directions_solve_the_generalised_eigenproblem() -> None:
    """As LAPACK solves it: multiset CCA by the sum of correlations (Kettenring 1971), with ridges."""
    moments = pooled(summed(stream(3)))
    names = moments.modalities
    total = sum(WIDTHS.values())
    starts = {
        name: sum(WIDTHS[other] for other in names[:number]) for number, name in enumerate(names)
    }
    cross, own = torch.zeros(total, total, dtype=DOUBLE), torch.zeros(total, total, dtype=DOUBLE)
    for name in names:
        rows = slice(starts[name], starts[name] + WIDTHS[name])
        root_FF, _ = root(moments.covariances[name], RIDGES[name])
        own[rows, rows] = root_FF @ root_FF.mT
    for (first, second), cross_FG in moments.crosses.items():
        rows = slice(starts[first], starts[first] + WIDTHS[first])
        columns = slice(starts[second], starts[second] + WIDTHS[second])
        cross[rows, columns], cross[columns, rows] = cross_FG, cross_FG.mT
    values, vectors = scipy.linalg.eigh(cross.numpy(), own.numpy())
    (found,) = solve(moments, RIDGES, WIDTH, DOUBLE).groups
    expected = torch.from_numpy(values[::-1][:WIDTH].copy())
    torch.testing.assert_close(found.values_K, expected)
    assert -1 <= values.min() <= values.max() <= 1
    stacked = torch.cat([found.heads[name] for name in names], dim=1)
    for ours, theirs in zip(stacked, torch.from_numpy(vectors.T[::-1][:WIDTH].copy()), strict=True):
        torch.testing.assert_close(ours, theirs * (ours @ theirs).sign(), rtol=1e-6, atol=1e-8)


def test_no_more_directions_are_solved_than_all_pairs_have_together() -> None:
    pairs = pooled(summed(stream(3)))
    limits = dict.fromkeys(pairs.crosses, 2.0)
    limited = solve(pairs, RIDGES, 20, DOUBLE, limits)
    everything = solve(pairs, RIDGES, 20, DOUBLE)
    assert limited.rank == 8 < everything.rank
    ours, theirs = limited.groups[0].values_K, everything.groups[0].values_K
    torch.testing.assert_close(ours, theirs[:8], rtol=1e-3, atol=1e-3)
    del limits["audio", "text"]
    assert solve(pairs, RIDGES, 20, DOUBLE, limits).rank == everything.rank


# --- Bad input ----------------------------------------------------------------------------------


def test_more_directions_than_rank_are_zero_and_the_rank_says_so() -> None:
    pair = ("audio", "text")
    first, second = rows_of(pair, 1)
    # Three directions are shared exactly, since the second side has no more of them.
    second = second[:, :3] @ torch.randn(3, 7, dtype=DOUBLE)
    (group,) = solved({pair: moments_of(first, second)}, wanted=20).groups
    assert group.rank == 3
    weights = group.weights(group.scaling(20))
    assert all(weight.shape[0] == 20 for weight in weights.values())
    assert all(not bool(weight[3:].any()) for weight in weights.values())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.ones(9, 6, dtype=DOUBLE), torch.ones(9, 7, dtype=DOUBLE)),
        (torch.arange(9.0, dtype=DOUBLE)[:, None] * torch.ones(6), torch.ones(9, 7, dtype=DOUBLE)),
        (
            torch.arange(9.0, dtype=DOUBLE)[:, None] * torch.ones(6),
            torch.arange(9.0, dtype=DOUBLE)[:, None] * torch.ones(7),
        ),
    ],
    ids=["all rows equal", "one side equal", "rank one"],
)
def test_singular_moments_have_finite_heads(first: Tensor, second: Tensor) -> None:
    (group,) = solved({("audio", "text"): moments_of(first, second)}).groups
    assert group.rank <= 1
    weights = group.weights(group.scaling(WIDTH))
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


def test_groups_without_a_dataset_in_common_are_solved_apart_in_all_directions() -> None:
    apart = {
        pair: moments_of(*rows_of(pair, 5)) for pair in (("audio", "text"), ("depth", "image"))
    }
    both = solved(apart)
    assert [tuple(sorted(group.heads)) for group in both.groups] == list(apart)
    for group, (pair, moments) in zip(both.groups, apart.items(), strict=True):
        (alone,) = solved({pair: moments}).groups
        assert torch.equal(group.values_K, alone.values_K)
        assert all(torch.equal(group.heads[name], alone.heads[name]) for name in pair)


def test_negative_correlations_are_learned_like_positive_ones() -> None:
    pair = ("audio", "text")
    first, second = rows_of(pair, 7)
    plus, minus = (solved({pair: moments_of(first, side)}) for side in (second, -second))
    torch.testing.assert_close(plus.groups[0].values_K, minus.groups[0].values_K)


def test_a_small_dataset_beside_a_huge_one_keeps_its_directions() -> None:
    small, huge = ("audio", "text"), ("depth", "image")
    few, many = rows_of(small, 8, rows=100), rows_of(huge, 9)
    bridge = ("image", "text")
    pairs = {
        small: moments_of(*few),
        huge: centred(
            pair_moments(*[torch.cat([side, torch.ones(40, 1)], dim=1) for side in many]),
            dataset_weight(10**7),
        ),
        bridge: moments_of(*rows_of(bridge, 10)),
    }
    (group,) = solved(pairs, wanted=6).groups
    agreement = torch.einsum(
        "kf,fg,kg->k", group.heads["audio"], pairs[small].cross_FG, group.heads["text"]
    )
    assert float(agreement.max()) > 0.1


@pytest.mark.parametrize("ridge", [0.0, SMALLEST_RIDGE / 2, 1.1, float("nan")])
def test_a_ridge_that_meets_rounding_is_refused(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge of 'text' is"):
        solve(pooled(summed(stream(0))), {**RIDGES, "text": ridge}, WIDTH, DOUBLE)


def test_values_that_are_not_finite_are_refused() -> None:
    first, second = rows_of(("audio", "text"), 0)
    first[3, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        moments_of(first, second)


def test_parts_of_a_dataset_without_rows_weigh_nothing() -> None:
    first, second = rows_of(("audio", "text"), 0)
    empty = moments_of(first[:0], second[:0])
    assert empty.weight == 0
    sums = (empty.first_FF, empty.second_GG, empty.cross_FG, empty.first_mean_F)
    assert not any(bool(part.any()) for part in sums)


def test_pooled_moments_are_the_weighted_ones_of_all_rows() -> None:
    """Also where datasets differ in their means."""
    datasets = [rows_of(("audio", "text"), seed) for seed in (1, 2)]
    first, second = (moments_of(*sides) for sides in datasets)
    found = (first + second).pooled
    assert found.count == 80
    for side, name in ((found.first, 0), (found.second, 1)):
        rows = torch.cat([sides[name] for sides in datasets])
        ones = torch.cat([rows, torch.ones(80, 1, dtype=DOUBLE)], dim=1)
        torch.testing.assert_close(side.sum_II, ones.mT @ ones)


def test_windows_of_a_stream_add_up() -> None:
    datasets = stream(2)
    parts = [summed(datasets[start:stop]) for start, stop in pairwise([0, 2, 3, 5])]
    total: dict[PairNames, CentredMoments] = {}
    for part in parts:
        for pair, moments in part.items():
            total[pair] = total[pair] + moments if pair in total else moments
    assert_same_scores(solved(total), solved(summed(datasets)))
