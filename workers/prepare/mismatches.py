"""Which shards have pairs that do not belong together, by heads that were solved from the other shards.

Shapes: N rows, B rows of a fold, F and G widths of what heads of the two sides read, S shards.

A row's own partner is ranked among partners of other rows, in both directions: a random one is in the middle. The mean rank
of a shard falls from that of true pairs to ½ in proportion to the share of its pairs that do not belong together, so mean
ranks give the share. Ranks are bounded: a few rows that are far from the rest do not decide.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from workers.model.heads import PairedRows, unit_rows, with_constant
from workers.model.loss import unit
from workers.nullspace.centred import centred, pooled
from workers.nullspace.closed_form import solve
from workers.nullspace.moments import PairMoments, pair_moments
from workers.nullspace.two_folds import Choice, best_choice

# The shards of a fold are judged by one solution: more folds leave more rows to solve from, and take longer.
_FOLDS = 5
_DIRECTIONS = 256
# Partners of other rows that a row's own one is ranked among.
_OTHERS = 512
# With fewer rows to solve from, heads fit these and no others.
_FEWEST_ROWS = 100
# A shard is named in one of a hundred datasets without a bad one.
_FALSE_ALARMS = 0.01
# The spread of rows counts as much as that of so many shards.
_ALIKE = 6
_LAMBDAS = torch.logspace(-1, 3, 16, dtype=torch.float64)
# Scores of equal features differ by so much at most.
_EQUAL = 1e-6


@dataclass(frozen=True)
class Mismatch:
    """The share of a shard's pairs that do not belong together, an estimate that noise may take below 0.

    `limit`: the largest share that the spread of the other shards explains.
    """

    share: float
    limit: float
    is_bad: bool


def mismatches(rows: PairedRows, shard_N: Tensor) -> dict[int, Mismatch]:
    """Judge shards, by number. `rows`: raw features. `shard_N`: the shard of each row.

    Empty with fewer than three shards or too few rows, and where true pairs rank no better than random ones.
    """
    numbers, place_N, count_S = torch.unique(shard_N, return_inverse=True, return_counts=True)
    fold_N = place_N % min(_FOLDS, len(numbers))
    if len(numbers) < 3 or len(rows) - int(fold_N.bincount().max()) < _FEWEST_ROWS:
        return {}
    judged = _Ranks(_ranks(rows, fold_N).double(), place_N, count_S.double()).judged()
    return dict(zip(numbers.tolist(), judged, strict=True))


def _ranks(rows: PairedRows, fold_N: Tensor) -> Tensor:
    """The rank of each row's own partner, from 0 to 1, by heads of the other folds (N)."""
    first_NF, second_NG = (
        with_constant(unit_rows(each)) for each in (rows.first_NI, rows.second_NJ)
    )
    read = replace(rows, first_NI=first_NF, second_NJ=second_NG)
    one, other = (pair_moments(half.first_NI, half.second_NJ) for half in read.halves())
    choice = best_choice((centred(one, 1.0), centred(other, 1.0)))
    rank_N = torch.empty(len(rows))
    for fold in range(int(fold_N.max()) + 1):
        is_own_N = fold_N == fold
        own = read.at(is_own_N)
        heads = _heads(one + other - pair_moments(own.first_NI, own.second_NJ), choice)
        first_NE, second_NE = (
            unit(side @ head.mT) for side, head in zip((first_NF, second_NG), heads, strict=True)
        )
        others = (~is_own_N).nonzero()[:, 0]
        others = others[:: -(-len(others) // _OTHERS)]
        score_B1 = (first_NE[is_own_N] * second_NE[is_own_N]).sum(1, keepdim=True)
        scores_BO = torch.cat(
            [first_NE[is_own_N] @ second_NE[others].mT, second_NE[is_own_N] @ first_NE[others].mT],
            1,
        )
        # Equal scores count half.
        wins_BO = (score_B1 - scores_BO > _EQUAL).float() + (
            score_B1 - scores_BO >= -_EQUAL
        ).float()
        rank_N[is_own_N] = wins_BO.mean(1) / 2
    assert 0 <= rank_N.min() <= rank_N.max() <= 1, "a row was not ranked"
    return rank_N


def _heads(moments: PairMoments, choice: Choice) -> tuple[Tensor, Tensor]:
    """The closed form of one pair (E × I, E × J, float32)."""
    names = ("first", "second")
    limits = {} if choice.significant is None else {names: float(choice.significant)}
    ridges = dict(zip(names, choice.ridges, strict=True))
    sums = pooled({names: centred(moments, 1.0)})
    (group,) = solve(sums, ridges, _DIRECTIONS, torch.float32, limits).groups
    weights = group.weights(group.scaling(group.rank))
    return weights["first"].float(), weights["second"].float()


@dataclass(frozen=True)
class _Ranks:
    """Ranks of all rows, the shard of each, and how many rows a shard has (float64)."""

    rank_N: Tensor
    shard_N: Tensor
    count_S: Tensor

    @cached_property
    def mean_S(self) -> Tensor:
        return (
            torch.zeros_like(self.count_S).index_add_(0, self.shard_N, self.rank_N) / self.count_S
        )

    def judged(self) -> list[Mismatch]:
        """Two bad shards hide each other, so the worst are taken away in turn, fewer than half of all.

        All up to the last one that is beyond its limit are bad, as in Rosner's test for several outliers (1983).
        """
        excess_S = (self.mean_S.median() - self.mean_S) * self.count_S.sqrt()
        order, bad = excess_S.argsort(descending=True, stable=True).tolist(), 0
        for taken in range(1, (len(order) - 1) // 2 + 1):
            if self._compared(order[taken - 1], order[taken:]).is_bad:
                bad = taken
        good, judged = order[bad:], {}
        for place, shard in enumerate(order):
            found = self._compared(shard, [each for each in good if each != shard])
            judged[shard] = replace(found, is_bad=place < bad)
        return [judged[shard] for shard in range(len(order))]

    def _compared(self, shard: int, others: list[int]) -> Mismatch:
        is_other_S = torch.zeros(len(self.count_S), dtype=torch.bool)
        is_other_S[others] = True
        rank_R = self.rank_N[is_other_S[self.shard_N]]
        mean = rank_R.mean()
        # How far the mean of n such rows falls by chance: with their cumulants K, P(fall > t) is at most
        # exp(-n (λ t - K(λ))) for every λ (Chernoff). Ranks are so skewed that a normal law names a tenth of all clean
        # datasets. One more row, of rank 0, stands for those that are too rare to be among the rest.
        fall_R = torch.cat([mean - rank_R, mean[None]])
        chance = math.log(len(self.count_S) / _FALSE_ALARMS) / float(self.count_S[shard])
        cumulant_L = torch.logsumexp(_LAMBDAS[:, None] * fall_R, 1) - math.log(len(fall_R))
        limit = float(((cumulant_L + chance) / _LAMBDAS).min())
        # Shards may differ by more than their rows do. Few of them hardly show it, so the spread of rows counts as well.
        between = (self.mean_S[others] - mean).square() @ self.count_S[others] / rank_R.var()
        limit *= max(1.0, float((between + _ALIKE) / (len(others) - 1 + _ALIKE))) ** 0.5
        # A random partner has the mean rank ½.
        agreement = max(float(mean) - 0.5, limit)
        share = float(mean - self.mean_S[shard]) / agreement
        return Mismatch(share, limit / agreement, share > limit / agreement)
