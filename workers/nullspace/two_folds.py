"""Choose ridges, and count directions, by how heads of one half of the rows score on the other half.

Exactly, and from moments alone.

Shapes: F and G widths of the two sides' features, without the constant 1, R and Q columns of their bases,
K directions.

A dataset's rows are summed in two halves. Heads of one half are scored on the other half by

    (mean score of true pairs)² / mean square of all scores                                    (12)

which is between 0 and K, and does not change with the scale of either head. On the rows that heads
were solved from it grows with every parameter and says nothing.

Each side has its own ridge: an encoder whose features hold little noise wants a small one. Many pairs of
ridges are compared, so both halves are brought into the directions in which the dataset varies most, and then
into the eigenvectors of the half to solve from, where whitening by any ridge is a scaling of rows.

The score rises with the number of directions while the other half agrees in them, too. Ten class names, once
centred, span nine dimensions: further directions correlate in one half only, by chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

import torch
from torch import Tensor

from workers.nullspace.centred import CentredMoments
from workers.nullspace.closed_form import NO_VARIANCE, typical_variance
from workers.nullspace.eigenvectors import leading_basis, leading_eigenvectors, random_start
from workers.nullspace.threads import in_threads

# Ridges to choose from, relative to a modality's typical variance.
RIDGES = tuple(0.00125 * 2**step for step in range(10))
_FIRST = RIDGES.index(0.02)
# Heads are compared by this many leading directions: the best of four ridges is the same with 64, 128
# and 256 (docs/log.md).
_COMPARED = 64
_TOLERANCE = 5e-2
# Directions in which ridges are compared. All of them take three times as long and lead to the same recall
# (docs/log.md).
_BASIS = 384
# Numbers of directions are rounded up to one of these: so coarse that the rounding of moments hardly ever decides,
# and far below the width of the basis, beyond which nothing is compared.
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# The fewest directions are taken that reach this share of the best score (docs/decisions/0045).
_ENOUGH = 0.98
# If nothing agrees, the score is about 1 / rows of a half. Up to nine times that is chance: three standard errors.
_CHANCE = 9
# A variance below this share of the smallest ridge is left out: whitening would leave a tenth of it at
# most.
_NEGLIGIBLE = 0.1

Steps = tuple[int, int]
"""The numbers of the two sides' ridges in `RIDGES`."""


@dataclass(frozen=True)
class Choice:
    """The ridges of the two sides with the highest score (12), and how many directions are significant there.

    `significant`: one of `COUNTS`; None if there are more. `correlation`: of the scores of all row combinations by heads
    of one half with those by heads of the other; None if a half has no heads.
    """

    ridges: tuple[float, float]
    score: float
    significant: int | None = None
    correlation: float | None = None

    def by_modality(self, pair: tuple[str, str], aligned: str | None) -> dict[str, float]:
        """The ridge of each modality; where one is `aligned` to the other, of that one alone."""
        ridges = dict(zip(pair, self.ridges, strict=True))
        return ridges if aligned is None else {aligned: ridges[aligned]}


def best_choice(halves: tuple[CentredMoments, CentredMoments]) -> Choice:
    """Climb from 0.02 to the ridges with the highest mean score of both folds, and count directions there.

    Always from there, and not from the ridges of earlier datasets: what a dataset chooses is then a
    function of its rows alone. The start stays, with score 0 and one direction, if a half has no rows or no
    variance.
    """
    sides = (
        (halves[0].first_FF, halves[1].first_FF),
        (halves[0].second_GG, halves[1].second_GG),
    )
    bases = in_threads(lambda side: leading_basis((side[0] + side[1]).float(), _BASIS), sides)
    one, other = in_threads(lambda half: _half(half, *bases), halves)
    if one is None or other is None:
        return Choice((RIDGES[_FIRST], RIDGES[_FIRST]), 0.0, COUNTS[0])
    folds = in_threads(lambda pair: _fold(*pair), ((one, other), (other, one)))

    def score_of(steps: Steps) -> float:
        ridges = RIDGES[steps[0]], RIDGES[steps[1]]
        return fmean(in_threads(lambda fold: fold.score(*ridges), folds))

    (first, second), score = climbed(score_of, (_FIRST, _FIRST), len(RIDGES))
    ridges = RIDGES[first], RIDGES[second]
    rows = min(half.rows for half in halves)
    heads = in_threads(lambda fold: fold.directions(*ridges), folds)
    # Halves with fewer rows than directions that are counted do not show which agree by chance: all count.
    fewest = (
        _rank(one, other)
        if rows < COUNTS[-1]
        else _agreeing([fold.scores(*each) for fold, each in zip(folds, heads, strict=True)], rows)
    )
    significant = next((count for count in COUNTS if count >= fewest), None)
    in_basis = [
        fold.in_basis(*(side_KS[:significant] for side_KS in each))
        for fold, each in zip(folds, heads, strict=True)
    ]
    return Choice(ridges, score, significant, _correlation((one, other), *in_basis))


def score_on(earlier: CentredMoments, ridges: tuple[float, float], new: CentredMoments) -> float:
    """(12) of the heads of an earlier dataset on the pairs of a new one; 0 if one of the two does not vary."""
    sides = earlier.first_FF, earlier.second_GG
    bases = in_threads(lambda sum_FF: leading_basis(sum_FF.float(), _BASIS), sides)
    here, there = _half(earlier, *bases), _half(new, *bases)
    return 0.0 if here is None or there is None else _fold(here, there).score(*ridges)


def _correlation(
    halves: tuple["_Half", "_Half"],
    one: tuple[Tensor, Tensor],
    other: tuple[Tensor, Tensor],
) -> float:
    """Of the scores by two pairs of heads (K × R, K × Q), over all combinations of the rows of both halves."""
    first_RR, second_QQ = (
        (a + b) / 2
        for a, b in (
            (halves[0].first_RR, halves[1].first_RR),
            (halves[0].second_QQ, halves[1].second_QQ),
        )
    )

    def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
        return float(((a[0] @ first_RR @ b[0].mT) * (a[1] @ second_QQ @ b[1].mT)).sum())

    size = product(one, one) * product(other, other)
    return product(one, other) / size**0.5 if size > 0 else 0.0


def _agreeing(scores: Sequence[Tensor], rows: int) -> int:
    """The fewest directions that reach enough of the best mean score.

    `scores`: of each fold, by number of directions (K). `rows`: of the smaller half.
    """
    compared = min(map(len, scores))
    mean_K = torch.stack([fold_K[:compared] for fold_K in scores]).mean(0)
    if not compared or float(mean_K.max()) * rows < _CHANCE:
        return 1
    return int((mean_K >= _ENOUGH * mean_K.max()).nonzero()[0]) + 1


def climbed(score_of: Callable[[Steps], float], start: Steps, count: int) -> tuple[Steps, float]:
    """The pair of numbers from 0 to `count` − 1 with the highest score around, and that score.

    Steps change one number by one, or both in the same direction. Each pair is scored once at most;
    of equal scores the earlier one stays, so that rounding does not decide.
    """
    scores: dict[Steps, float] = {}

    def score(steps: Steps) -> float:
        if steps not in scores:
            scores[steps] = score_of(steps)
        return scores[steps]

    best = start
    while True:
        around = [
            (best[0] + one, best[1] + other)
            for one, other in product((0, 1, -1), repeat=2)
            if one * other >= 0
        ]
        # `best` itself is the first of them, and max returns the first of equal ones.
        inside = [steps for steps in around if all(0 <= step < count for step in steps)]
        found = max(inside, key=score)
        if found == best:
            return best, score(best)
        best = found


@dataclass(frozen=True)
class _Half:
    """Covariances, cross-covariance and means of one half in the bases of both sides (float32).

    `typical`: the typical variance of each side in all directions.
    """

    first_RR: Tensor
    second_QQ: Tensor
    cross_RQ: Tensor
    first_mean_R: Tensor
    second_mean_Q: Tensor
    typical: tuple[float, float]


def _half(moments: CentredMoments, first_FR: Tensor, second_GQ: Tensor) -> _Half | None:
    """Return the half in the bases; None without rows or without variance."""
    weight, sides = moments.weight, (moments.first_FF, moments.second_GG)
    if weight <= 0 or any(float(sum_FF.trace()) <= weight * NO_VARIANCE for sum_FF in sides):
        return None
    first, second = (typical_variance(sum_FF) / weight for sum_FF in sides)
    scale = 1 / weight
    return _Half(
        scale * (first_FR.mT @ moments.first_FF.float() @ first_FR),
        scale * (second_GQ.mT @ moments.second_GG.float() @ second_GQ),
        scale * (first_FR.mT @ moments.cross_FG.float() @ second_GQ),
        scale * (moments.first_mean_F.float() @ first_FR),
        scale * (moments.second_mean_G.float() @ second_GQ),
        (first, second),
    )


@dataclass(frozen=True)
class _Side:
    """One modality of the half that heads are solved from: its variances (S), their eigenvectors within the
    basis (R × S), and its typical variance."""

    values_S: Tensor
    vectors_RS: Tensor
    typical: float

    def whitening(self, ridge: float) -> Tensor:
        """(s + e)^-½ for each variance s (S)."""
        return (self.values_S + ridge * self.typical).rsqrt()


@dataclass(frozen=True)
class _Fold:
    """Both halves in the eigenvectors of the one to solve from: S and T of them.

    `cross_ST`: that half's cross-covariance. The rest is of the other half, about the means of this one:
    second moments of both sides and of pairs.
    """

    first: _Side
    second: _Side
    cross_ST: Tensor
    first_SS: Tensor
    second_TT: Tensor
    pairs_ST: Tensor

    def score(self, first_ridge: float, second_ridge: float) -> float:
        """(12) of the heads that these ridges lead to."""
        whitened_ST = self._whitened(first_ridge, second_ridge)
        heads = self._heads(*_singular_vectors(whitened_ST), (first_ridge, second_ridge))
        found = self.scores(*heads)
        return float(found[-1]) if len(found) else 0.0

    def directions(self, first_ridge: float, second_ridge: float) -> tuple[Tensor, Tensor]:
        """The heads (K × S, K × T) of all directions, the leading one first."""
        left_SK, values_K, right_KT = torch.linalg.svd(
            self._whitened(first_ridge, second_ridge), full_matrices=False
        )
        return self._heads(values_K, left_SK.mT, right_KT, (first_ridge, second_ridge))

    def in_basis(self, first_KS: Tensor, second_KT: Tensor) -> tuple[Tensor, Tensor]:
        """The same heads in the bases of both sides (K × R, K × Q)."""
        return first_KS @ self.first.vectors_RS.mT, second_KT @ self.second.vectors_RS.mT

    def _whitened(self, first_ridge: float, second_ridge: float) -> Tensor:
        first_S, second_T = self.first.whitening(first_ridge), self.second.whitening(second_ridge)
        return first_S[:, None] * self.cross_ST * second_T

    def _heads(
        self, values_K: Tensor, first_KS: Tensor, second_KT: Tensor, ridges: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Each direction times its singular value."""
        return (
            values_K[:, None] * first_KS * self.first.whitening(ridges[0]),
            values_K[:, None] * second_KT * self.second.whitening(ridges[1]),
        )

    def scores(self, first_KS: Tensor, second_KT: Tensor) -> Tensor:
        """(12) of the first 1 to K directions (K)."""
        agreement_K = ((first_KS @ self.pairs_ST) * second_KT).sum(1).cumsum(0)
        first_KK = first_KS @ self.first_SS @ first_KS.mT
        second_KK = second_KT @ self.second_TT @ second_KT.mT
        size_K = (first_KK * second_KK).cumsum(0).cumsum(1).diagonal()
        return (agreement_K.clamp(min=0).square() / size_K).nan_to_num(0.0, posinf=0.0)


def _rank(one: _Half, other: _Half) -> int:
    """In how many directions both sides of the dataset vary: the smaller rank."""
    first, second = map(fmean, zip(one.typical, other.typical, strict=True))
    return min(
        len(_side((one.first_RR + other.first_RR) / 2, first).values_S),
        len(_side((one.second_QQ + other.second_QQ) / 2, second).values_S),
    )


def _fold(here: _Half, there: _Half) -> _Fold:
    """Solve from `here`, score on `there`."""
    first = _side(here.first_RR, here.typical[0])
    second = _side(here.second_QQ, here.typical[1])
    # Means of the other half about those that the heads subtract.
    first_S = (there.first_mean_R - here.first_mean_R) @ first.vectors_RS
    second_T = (there.second_mean_Q - here.second_mean_Q) @ second.vectors_RS
    return _Fold(
        first,
        second,
        _between(first, here.cross_RQ, second),
        _between(first, there.first_RR, first) + first_S.outer(first_S),
        _between(second, there.second_QQ, second) + second_T.outer(second_T),
        _between(first, there.cross_RQ, second) + first_S.outer(second_T),
    )


def _side(covariance_RR: Tensor, typical: float) -> _Side:
    values_R, vectors_RR = torch.linalg.eigh((covariance_RR + covariance_RR.mT) / 2)
    kept = values_R > _NEGLIGIBLE * RIDGES[0] * typical
    return _Side(values_R[kept], vectors_RR[:, kept], typical)


def _between(first: _Side, sum_RQ: Tensor, second: _Side) -> Tensor:
    return first.vectors_RS.mT @ sum_RQ @ second.vectors_RS


def _singular_vectors(matrix_ST: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular values (K) and vectors (K × S, K × T): eigenvectors of [[0, M], [Mᵀ, 0]]."""
    rows, columns = matrix_ST.shape

    def times(block_DN: Tensor) -> Tensor:
        return torch.cat([matrix_ST @ block_DN[rows:], matrix_ST.mT @ block_DN[:rows]])

    wanted = min(_COMPARED, rows, columns)
    start_DN = random_start(rows + columns, wanted, matrix_ST)
    found = leading_eigenvectors(times, start_DN, wanted, _TOLERANCE)
    vectors_KD = found.vectors_DK.mT
    return found.values_K.to(matrix_ST), vectors_KD[:, :rows], vectors_KD[:, rows:]
