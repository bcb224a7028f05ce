"""The best heads of all modalities in closed form: from moments alone, without rows or an order.

Shapes: F and G widths of features without the constant 1, I = F + 1 what a head reads, D sum of
the widths of all modalities, K directions, E width of the embeddings.

For each modality take the covariance C of its features over all datasets, for each pair (u, v) the
cross-covariance X_uv (centred.py). Directions w_u, one per modality, that make embeddings of true
pairs agree most maximise

    Σ_pairs 2 w_uᵀ X_uv w_v   subject to   Σ_u w_uᵀ (C_u + e_u I) w_u = 1                     (10)

which is canonical correlation analysis of many views, where views are connected as modalities are by
datasets. With Cholesky's C_u + e_u I = L_u L_uᵀ and w_u = L_u⁻ᵀ q_u it is an eigenproblem of the
whitened cross-covariances, put as blocks into one symmetric matrix with zeros on its diagonal:

    A q = s q,   A_uv = L_u⁻¹ X_uv L_v⁻ᵀ                                                      (11)

The eigenvector of the k-th largest s has the k-th direction of every modality. Any other root of
C + e I gives the same w; Cholesky's takes a thirtieth of the time of eigenvectors.

The spectrum lies in [−1, 1]. Of a single dataset the covariance of both sides together, [[C_u, X],
[Xᵀ, C_v]], has no negative eigenvalue, nor has [[C_u, −X], [−Xᵀ, C_v]]. Summed over datasets, C ± X
has none, with X the matrix of all blocks X_uv, and C + e I ≥ C. (The scales of the modalities, which
`centred.pooled` divides by, cancel in A.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from workers.nullspace.centred import PairNames, Pooled, components
from workers.nullspace.eigenvectors import (
    leading_eigenvectors,
    random_start,
    with_canonical_signs,
)
from workers.nullspace.threads import in_threads

# For unit features in float32, a variance below this share of the largest ones is rounding.
SMALLEST_RIDGE = 1e-6
# Features have unit length. If all their variances together are below this, they are rounding.
NO_VARIANCE = 1e-6
# A correlation this small is none: telling it from noise takes 10⁸ rows, and float32 rounds to 10⁻⁷.
NO_CORRELATION = 1e-4
# Recall does not change below this: 3e-2, 1e-2, 3e-3 and 1e-3 gave the same to 0.1 points. At 7e-2, three seeds
# have 0.3 points of R@1 less.
TOLERANCE = 3e-2


@dataclass(frozen=True)
class Directions:
    """The leading canonical directions of modalities that datasets connect, as far as they are real.

    `values_K`: s of (11), falling, each above 0 and at most 1. `heads`: by modality K × F, unscaled,
    so that Σ_u w_uᵀ (C_u + e_u I) w_u = 1 for each direction. `means`: of the features (F).
    `ridges`: e_u. `residual`: of the eigenvectors.
    """

    values_K: Tensor
    heads: Mapping[str, Tensor]
    means: Mapping[str, Tensor]
    ridges: Mapping[str, float]
    residual: float = 0.0

    @property
    def rank(self) -> int:
        """K: how many directions these are."""
        return len(self.values_K)

    def at(self, kept_K: Tensor) -> "Directions":
        """Some of the directions."""
        heads = {name: head_KF[kept_K] for name, head_KF in self.heads.items()}
        return replace(self, values_K=self.values_K[kept_K], heads=heads)

    def weights(self, mixing_EK: Tensor) -> dict[str, Tensor]:
        """Heads E × I that apply `mixing_EK` (E × K) to the centred directions.

        The last column is the bias −W μ: the mean of a modality has the embedding 0.
        """
        found = {}
        for name, head_KF in self.heads.items():
            weight_EF = mixing_EK.to(head_KF) @ head_KF
            bias_E1 = -(weight_EF @ self.means[name])[:, None]
            found[name] = torch.cat([weight_EF, bias_E1], dim=1)
        return found

    def scaling(self, width: int) -> Tensor:
        """The mixing (E × K) of the closed form: direction k times s_k, zero beyond the rank.

        A direction counts by how far its pairs agree, as in the low-rank approximation of A.
        """
        mixing_EK = self.values_K.new_zeros(width, self.rank)
        mixing_EK.diagonal().copy_(self.values_K[: min(width, self.rank)])
        return mixing_EK


@dataclass(frozen=True)
class Solution:
    """The directions of each group of modalities that datasets connect (`centred.components`).

    Two groups share no dataset, so each uses all directions of the embeddings, and nothing aligns
    one with the other.
    """

    groups: tuple[Directions, ...] = field(default=())

    @property
    def rank(self) -> int:
        """Directions that are real in the group that has most of them."""
        return max((group.rank for group in self.groups), default=0)


def solve(
    moments: Pooled,
    ridges: Mapping[str, float],
    wanted: int,
    precision: torch.dtype,
    limits: Mapping[PairNames, float] = {},
    tolerance: float = TOLERANCE,
) -> Solution:
    """The `wanted` leading canonical directions, by (10).

    `ridges`: by modality, e relative to its `typical_variance`. `precision`: of whitened blocks and of
    the iteration; roots and directions are in that of the moments. `limits`: by pair, the number of its
    significant directions, if there is one. A has no more positive eigenvalues than the ranks of its blocks add up to,
    so no more are solved for. `tolerance`: the largest residual
    of an eigenvector. The result is a function of the moments alone, so the order of datasets does not
    change it. Raises ValueError if a ridge is below rounding or above 1, or if fewer than one direction
    is wanted.
    """
    for name in moments.modalities:
        if not SMALLEST_RIDGE <= ridges[name] <= 1:
            raise ValueError(
                f"ridge of {name!r} is {ridges[name]:g}, it must be from {SMALLEST_RIDGE:g} to 1"
            )
    if wanted < 1:
        raise ValueError(f"{wanted} directions are wanted, it must be 1 at least")
    groups = components(moments.crosses)
    assert sum(len(group) for group in groups) == len(moments.modalities), "groups share none"
    settings = _Settings(ridges, wanted, precision, limits, tolerance)
    return Solution(tuple(_directions(moments.part(group), settings) for group in groups))


@dataclass(frozen=True)
class _Settings:
    ridges: Mapping[str, float]
    wanted: int
    precision: torch.dtype
    limits: Mapping[PairNames, float]
    tolerance: float


def _directions(moments: Pooled, settings: _Settings) -> Directions:
    names, precision = moments.modalities, settings.precision
    found = in_threads(lambda name: root(moments.covariances[name], settings.ridges[name]), names)
    roots = {name: each for name, (each, _) in zip(names, found, strict=True)}
    ridges = {name: each for name, (_, each) in zip(names, found, strict=True)}
    coarse = {name: each.to(precision) for name, each in roots.items()}
    made = in_threads(
        lambda pair: whitened(
            moments.crosses[pair].to(precision), coarse[pair[0]], coarse[pair[1]]
        ),
        moments.crosses,
    )
    blocks = dict(zip(moments.crosses, made, strict=True))
    # Rows of each modality in the vectors of all of them.
    rows, size = {}, 0
    for name in names:
        rows[name] = slice(size, size + len(roots[name]))
        size += len(roots[name])

    def product(block_DN: Tensor) -> Tensor:
        image_DN = torch.zeros_like(block_DN)
        for (first, second), block_FG in blocks.items():
            image_DN[rows[first]].addmm_(block_FG, block_DN[rows[second]])
            image_DN[rows[second]].addmm_(block_FG.mT, block_DN[rows[first]])
        return image_DN

    limit = sum(settings.limits.get(pair, math.inf) for pair in moments.crosses)
    count = int(min(settings.wanted, size, limit))
    start_DN = random_start(size, count, torch.zeros((), dtype=precision))
    leading = leading_eigenvectors(product, start_DN, count, settings.tolerance)
    real = int((leading.values_K > NO_CORRELATION).sum())
    assert real <= count <= size
    vectors_DK = with_canonical_signs(leading.vectors_DK[:, :real].to(roots[names[0]]))
    # w = L⁻ᵀ q for all directions at once.
    solved = in_threads(
        lambda name: (
            torch.linalg.solve_triangular(roots[name].mT, vectors_DK[rows[name]], upper=True).mT
        ),
        names,
    )
    heads = dict(zip(names, solved, strict=True))
    assert all(len(head_KF) == real for head_KF in solved), "a direction is not in every head"
    values_K = leading.values_K[:real].to(roots[names[0]])
    return Directions(values_K, heads, moments.means, ridges, leading.residual)


def typical_variance(covariance_FF: Tensor) -> float:
    """tr C² / tr C: the mean of the variances, each weighted by itself.

    Between the mean and the largest variance. Unlike the largest it needs no eigenvalues, and unlike
    the mean it does not change with the number of directions that hardly vary.
    """
    return float(torch.linalg.matrix_norm(covariance_FF).square() / covariance_FF.trace())


def root(covariance_FF: Tensor, ridge: float) -> tuple[Tensor, float]:
    """L (F × F, lower triangular) with L Lᵀ = C + e I and e = ridge · `typical_variance`; and e.

    The identity and 1 if no feature varies: then there is nothing to whiten. Where C has negative
    eigenvalues from rounding that exceed e, the ridge grows tenfold until it covers them.
    Raises ValueError for values that are not finite.
    """
    # A finite sum has finite terms.
    if not bool(covariance_FF.sum().isfinite()):
        raise ValueError("a covariance has values that are not finite")
    if float(covariance_FF.trace()) <= NO_VARIANCE:
        return torch.eye(len(covariance_FF)).to(covariance_FF), 1.0
    floor = ridge * typical_variance(covariance_FF)
    raised_FF = covariance_FF.clone()
    raised_FF.diagonal().add_(floor)
    factor = torch.linalg.cholesky_ex(raised_FF)
    if int(factor.info):
        return root(covariance_FF, 10 * ridge)
    assert floor > 0
    return factor.L, floor


def whitened(cross_FG: Tensor, first_FF: Tensor, second_GG: Tensor) -> Tensor:
    """L_u⁻¹ X L_v⁻ᵀ (F × G)."""
    left_FG = torch.linalg.solve_triangular(first_FF, cross_FG, upper=False)
    both_GF: Tensor = torch.linalg.solve_triangular(second_GG, left_FG.mT, upper=False)
    return both_GF.mT.contiguous()
