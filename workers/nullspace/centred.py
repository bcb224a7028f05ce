"""Covariances of datasets, pooled over datasets: what the closed form is computed from.

Shapes: F and G widths of the two sides' features, without the constant 1.

Unlike the moments that a mask protects (moments.py), these are about the means of each dataset:
where two datasets differ in their means alone, nothing can be learned from that about their pairs.

Sums are exact. What a dataset adds is rounded once, to multiples of `GRID`, and float64 adds and
subtracts such numbers without rounding while a sum stays below 2²¹. So the sum over datasets has the same
bits in every order, and taking a dataset back leaves the bits of a sum that never had it. It has to be
exact: where eigenvalues lie close together, a difference of 10⁻⁷ in a covariance turns eigenvectors, and
the polish (workers/methods/polish.py) would end elsewhere.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor

from workers.nullspace.moments import PairMoments, SecondMoment

# Of conditioned features a covariance is at most about 1, times the weight √rows of a dataset. A multiple of
# 2⁻³² is below what float32 rounds of all entries but the smallest, and fits into float32.
GRID = 2.0**-32

PairNames = tuple[str, str]
"""The two modalities of a pair, in lexical order."""


@dataclass(frozen=True)
class CentredMoments:
    """Sums over datasets of weight · covariance and weight · cross-covariance, float64, and their means.

    `weights_D`, `first_means_DF`, `second_means_DG`: of each of the D datasets, in an order of their own
    (`_netted`). Sums are of datasets in any order; `rows` counts the rows of all.
    """

    rows: int
    weights_D: Tensor
    first_FF: Tensor
    second_GG: Tensor
    cross_FG: Tensor
    first_means_DF: Tensor
    second_means_DG: Tensor

    def __add__(self, other: "CentredMoments") -> "CentredMoments":
        weights_D, first_means_DF, second_means_DG = _netted(
            torch.cat([self.weights_D, other.weights_D]),
            torch.cat([self.first_means_DF, other.first_means_DF]),
            torch.cat([self.second_means_DG, other.second_means_DG]),
        )
        return CentredMoments(
            self.rows + other.rows,
            weights_D,
            self.first_FF + other.first_FF,
            self.second_GG + other.second_GG,
            self.cross_FG + other.cross_FG,
            first_means_DF,
            second_means_DG,
        )

    def __sub__(self, other: "CentredMoments") -> "CentredMoments":
        # A dataset with the opposite weight takes back what it added.
        return self + CentredMoments(
            -other.rows,
            -other.weights_D,
            -other.first_FF,
            -other.second_GG,
            -other.cross_FG,
            other.first_means_DF,
            other.second_means_DG,
        )

    def swapped(self) -> "CentredMoments":
        """The same with the two sides exchanged."""
        return CentredMoments(
            self.rows,
            self.weights_D,
            self.second_GG,
            self.first_FF,
            self.cross_FG.mT.contiguous(),
            self.second_means_DG,
            self.first_means_DF,
        )

    @property
    def weight(self) -> float:
        """The sum of all weights."""
        return float(self.weights_D.sum())

    @property
    def first_mean_F(self) -> Tensor:
        """The sum of weight · mean of the first side."""
        return self.weights_D @ self.first_means_DF

    @property
    def second_mean_G(self) -> Tensor:
        """The sum of weight · mean of the second side."""
        return self.weights_D @ self.second_means_DG

    @property
    def pooled(self) -> PairMoments:
        """Uncentred moments of all rows with the constant 1, each dataset by its weight."""
        first = self._uncentred(self.first_FF, self.first_means_DF, self.first_means_DF)
        second = self._uncentred(self.second_GG, self.second_means_DG, self.second_means_DG)
        cross_IJ = self._uncentred(self.cross_FG, self.first_means_DF, self.second_means_DG)
        return PairMoments(
            SecondMoment(self.rows, first), SecondMoment(self.rows, second), cross_IJ
        )

    def _uncentred(self, sum_FG: Tensor, first_DF: Tensor, second_DG: Tensor) -> Tensor:
        """Σ_d w_d E [x, 1] [y, 1]ᵀ = [[Σ w_d cov + Σ w_d m_d n_dᵀ, Σ w_d m_d], [Σ w_d n_dᵀ, Σ w_d]], times rows / Σ w_d."""
        scale = self.rows / max(self.weight, 1e-300)
        weighted_FD = first_DF.mT * self.weights_D * scale
        found_IJ = sum_FG.new_empty(sum_FG.shape[0] + 1, sum_FG.shape[1] + 1)
        found_IJ[:-1, :-1] = torch.addmm(sum_FG, weighted_FD, second_DG, beta=scale)
        found_IJ[:-1, -1] = weighted_FD.sum(1)
        found_IJ[-1, :-1] = scale * self.weights_D @ second_DG
        found_IJ[-1, -1] = scale * self.weights_D.sum()
        return found_IJ


def centred(moments: PairMoments, weight: float) -> CentredMoments:
    """Covariances of the rows of one dataset, or of a part of it, times `weight`.

    All zeros, the weight included, without rows. Raises ValueError for values that are not finite.
    """
    rows = max(moments.count, 1)
    if moments.count == 0:
        weight = 0.0
    # With the constant 1 in the last column, E x̃ x̃ᵀ = [[E x xᵀ, E x], [E xᵀ, 1]].
    first_F, second_G = (side.sum_II[:-1, -1] / rows for side in (moments.first, moments.second))
    first_FF, second_GG, cross_FG = (
        # In one pass: weight / rows · Σ x yᵀ − weight · m nᵀ.
        torch.addr(sum_IJ[:-1, :-1], one_F, other_G, beta=weight / rows, alpha=-weight)
        for sum_IJ, one_F, other_G in (
            (moments.first.sum_II, first_F, first_F),
            (moments.second.sum_II, second_G, second_G),
            (moments.cross_IJ, first_F, second_G),
        )
    )
    # A finite sum has finite terms.
    if not all(bool(each.sum().isfinite()) for each in (first_FF, second_GG, cross_FG)):
        raise ValueError(f"moments of {moments.count} rows have values that are not finite")
    weights_D = torch.tensor([weight], dtype=torch.float64)
    means_DF, means_DG = first_F[None], second_G[None]
    return CentredMoments(
        moments.count, weights_D, first_FF, second_GG, cross_FG, means_DF, means_DG
    )


def dataset_moments(moments: PairMoments) -> CentredMoments:
    """What a whole dataset adds to the sums: `centred` by its `dataset_weight`, in multiples of `GRID`.

    Raises ValueError as `centred`.
    """
    exact = centred(moments, dataset_weight(moments.count))
    return replace(
        exact,
        first_FF=_symmetric(_on_float32_grid(exact.first_FF)),
        second_GG=_symmetric(_on_float32_grid(exact.second_GG)),
        cross_FG=_on_float32_grid(exact.cross_FG),
    )


def _on_float32_grid(sum_FG: Tensor) -> Tensor:
    """The nearest multiple of GRID that float32 holds, float64."""
    return sum_FG.float().double().div_(GRID).round_().mul_(GRID)


def _symmetric(sum_FF: Tensor) -> Tensor:
    """Its lower triangle on both sides: products may round the two differently."""
    return sum_FF.tril() + sum_FF.tril(-1).mT


def _netted(weights_D: Tensor, *means_DF: Tensor) -> tuple[Tensor, ...]:
    """Datasets in an order that does not depend on their arrival, without those that were taken back.

    A dataset with the opposite weight takes back one with the same means. Ordered by weight, then means.
    """
    net: Counter[tuple[float, ...]] = Counter()
    places: dict[tuple[float, ...], int] = {}
    for place, weight in enumerate(weights_D.tolist()):
        key = (abs(weight), *(number for means in means_DF for number in means[place].tolist()))
        net[key] += -1 if weight < 0 else 1
        places[key] = place
    kept = [key for key in sorted(net) for _ in range(abs(net[key]))]
    assert len(kept) <= len(weights_D), "there are more datasets than before"
    rows = [places[key] for key in kept]
    signed = [key[0] if net[key] > 0 else -key[0] for key in kept]
    return torch.tensor(signed, dtype=weights_D.dtype), *(means[rows] for means in means_DF)


def dataset_weight(rows: int) -> float:
    """How much a dataset of so many rows counts: √rows.

    Weighted by rows, a dataset of 10⁷ rows would leave one of 10² without a direction. Weighted
    equally, the noise of 10² rows would count as much as what 10⁷ rows say.
    """
    return math.sqrt(rows)


@dataclass(frozen=True)
class Pooled:
    """Weighted means over all datasets: by modality the mean (F) and the covariance (F × F).

    By pair the cross-covariance (F × G), its weighted sum divided by √(the weights of the two
    modalities): so it is to the two covariances as the sums are to each other.
    """

    means: Mapping[str, Tensor]
    covariances: Mapping[str, Tensor]
    crosses: Mapping[PairNames, Tensor]

    @property
    def modalities(self) -> list[str]:
        """In lexical order."""
        return sorted(self.covariances)

    def to(self, precision: torch.dtype) -> "Pooled":
        """Return the covariances in another precision."""
        return Pooled(
            {name: mean_F.to(precision) for name, mean_F in self.means.items()},
            {name: sum_FF.to(precision) for name, sum_FF in self.covariances.items()},
            {pair: cross_FG.to(precision) for pair, cross_FG in self.crosses.items()},
        )

    def part(self, modalities: Iterable[str]) -> "Pooled":
        """Those of some modalities alone."""
        names = set(modalities)
        return Pooled(
            {name: self.means[name] for name in names},
            {name: self.covariances[name] for name in names},
            {pair: cross for pair, cross in self.crosses.items() if names.issuperset(pair)},
        )


def pooled(pairs: Mapping[PairNames, CentredMoments]) -> Pooled:
    """Pool the moments of pairs by modality. Raises ValueError without pairs."""
    if not pairs:
        raise ValueError("no pair to pool: the closed form needs one dataset at least")
    sides: dict[str, list[tuple[float, Tensor, Tensor]]] = {}
    # In lexical order, so that the order in which pairs arrived does not change a bit.
    for first, second in sorted(pairs):
        moments = pairs[first, second]
        weight = moments.weight
        for name, covariance_FF, mean_F in (
            (first, moments.first_FF, moments.first_mean_F),
            (second, moments.second_GG, moments.second_mean_G),
        ):
            sides.setdefault(name, []).append((weight, covariance_FF, mean_F))
    means, covariances, totals = {}, {}, {}
    for name, parts in sides.items():
        weights, covariance_parts, mean_parts = zip(*parts, strict=True)
        total = totals[name] = max(sum(weights), 0.0) or 1.0
        means[name] = reduce(add, mean_parts) / total
        covariances[name] = reduce(add, covariance_parts) / total
    crosses = {
        (first, second): pairs[first, second].cross_FG / math.sqrt(totals[first] * totals[second])
        for first, second in sorted(pairs)
    }
    return Pooled(means, covariances, crosses)


def components(pairs: Iterable[PairNames]) -> list[tuple[str, ...]]:
    """The groups of modalities that pairs connect, each sorted, in lexical order.

    Nothing says how modalities of two groups belong together: a score between them has no meaning.
    """
    groups: list[set[str]] = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)]
        groups.append(set(pair).union(*touched))
    return sorted(tuple(sorted(group)) for group in groups)
