"""Certificates for old datasets, from moments alone: how far scores moved, how good they are.

Shapes: E width of the embeddings, I and J widths of the two sides' features.

With G = W_uᵀ W_v, mean moments C_u, C_v and mean cross moment X, over all row combinations

    mean of (x_uᵀ G x_v)² = tr(C_u G C_v Gᵀ)         mean square of the scores
    mean of x_uᵀ G x_v over true pairs = tr(Gᵀ X)    mean score of the pairs

because Σ (x_uᵀ G x_v)² = Σ x_uᵀ G (x_v x_vᵀ) Gᵀ x_u, and the two rows of a combination are summed
independently. *Drift* (6) compares the first of ΔG = G − G₀ with that of G₀. *Quality* (7) is the
spectral contrastive loss, for which second moments are sufficient if heads are linear (HaoChen et
al., arXiv 2106.04156). Scaled by what both terms were when the dataset was learned, a and b,

    L(G) = tr(C_u G C_v Gᵀ) / a − 2 tr(Gᵀ X) / b

Along its own ray, t G₀, it is t² − 2 t: lowest, at −1, for the heads that learned the dataset.

*Optimality* compares L with the lowest that any two heads of width E reach on this dataset alone, which
is exact from moments as well: it separates what was forgotten from what a head of this width cannot
hold. With H = C_u^½ G C_v^½ of rank E at most and K = C_u^-½ X C_v^-½, L = |H|²/a − 2⟨H, K⟩/b. The best
rank-E approximation of K (Eckart and Young 1936) is best here, times a/b:

    min L = −(a / b²) Σ_{k ≤ E} σ_k(K)²                                                       (14)

G (I × J) is never formed. With M = W C Wᵀ (E × E), tr(C_u G C_v Gᵀ) = tr(M_u M_v).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.moments import PairMoments, SecondMoment

# Of moments with float32 products, an eigenvalue below this share of the largest is rounding of zero.
_NO_ENERGY = 1e-7
# A mean score of true pairs below this share of the scores' size is rounding of zero.
_ZERO = 1e-12


@dataclass(frozen=True)
class PairWeights:
    """The heads of the two sides of a pair at one moment in time."""

    first_EI: Tensor
    second_EJ: Tensor

    def double(self) -> "PairWeights":
        return PairWeights(self.first_EI.double(), self.second_EJ.double())


# --- Drift --------------------------------------------------------------------------------------


def relative_drift(moments: PairMoments, then: PairWeights, now: PairWeights) -> float:
    """Root mean square change of the scores of all row combinations, relative to their size then.

    √( tr(C_u ΔG C_v ΔGᵀ) / tr(C_u G₀ C_v G₀ᵀ) ), equation (6).
    Exactly zero when nothing moved. Heads that moved without moving a score read as up to about
    1e-8, the root of what float64 rounds. Zero if all scores were zero.
    """
    change, size = _change_and_size(moments, then, now)
    # Scores that were all zero had no order to lose.
    if size <= 0:
        return 0.0
    # Rounding may leave a tiny negative sum where nothing moved; the root needs 0.
    return float((max(change, 0.0) / size) ** 0.5)


def _change_and_size(
    moments: PairMoments, then: PairWeights, now: PairWeights
) -> tuple[float, float]:
    """(tr(C_u ΔG C_v ΔGᵀ), tr(C_u G₀ C_v G₀ᵀ))."""
    first = _pushed(moments.first, then.first_EI, now.first_EI)
    second = _pushed(moments.second, then.second_EJ, now.second_EJ)
    # The denominator: tr(C_u W_uᵀ W_v C_v W_vᵀ W_u) = tr(W_u C_u W_uᵀ · W_v C_v W_vᵀ), since a trace may
    # be rotated. Both factors are E × E for features of any width.
    size = float((first.then_EE * second.then_EE).sum())
    # ΔG = Δ_uᵀ W_v,now + W_u,thenᵀ Δ_v. Kept as two terms P + Q it is free of the cancellation of
    # subtracting two large products, and |P + Q|² = |P|² + 2 ⟨P, Q⟩ + |Q|² needs E × E traces only:
    #   |P|²   = tr(Δ_u C_u Δ_uᵀ · W_v,now C_v W_v,nowᵀ)
    #   ⟨P, Q⟩ = tr(Δ_u C_u W_uᵀ · Δ_v C_v W_v,nowᵀ)
    #   |Q|²   = tr(W_u C_u W_uᵀ · Δ_v C_v Δ_vᵀ)
    # where tr(A B) = Σ A ∘ Bᵀ, and symmetric factors need no transpose.
    change = float(
        (first.moved_EE * second.now_EE).sum()
        + 2 * (first.mixed_EE * second.now_mixed_EE.mT).sum()
        + (first.then_EE * second.moved_EE).sum()
    )
    return change, size


@dataclass(frozen=True)
class _Pushed:
    """A side's mean moment between its head then (W) and its change (Δ), each E × E, float64."""

    then_EE: Tensor  # W C Wᵀ
    mixed_EE: Tensor  # Δ C Wᵀ
    moved_EE: Tensor  # Δ C Δᵀ

    @property
    def now_mixed_EE(self) -> Tensor:
        """Δ C (W + Δ)ᵀ."""
        return self.mixed_EE + self.moved_EE

    @property
    def now_EE(self) -> Tensor:
        """(W + Δ) C (W + Δ)ᵀ."""
        return self.then_EE + self.mixed_EE + self.mixed_EE.mT + self.moved_EE


def _pushed(moment: SecondMoment, then_EI: Tensor, now_EI: Tensor) -> _Pushed:
    """All that a side contributes, with one product with the moment for each head that is not zero."""
    mean_II = moment.mean_II
    then_EI, now_EI = then_EI.to(mean_II), now_EI.to(mean_II)
    change_EI = now_EI - then_EI
    then_EE = then_EI @ mean_II @ then_EI.mT
    # Half of the heads do not move in a job. Exact zeros save their products.
    if not change_EI.any():
        still_EE = torch.zeros_like(then_EE)
        return _Pushed(then_EE, still_EE, still_EE)
    # Δ C (E × I) once, for both Δ C Wᵀ and Δ C Δᵀ: the product with the moment is the expensive one.
    change_mean_EI = change_EI @ mean_II
    return _Pushed(then_EE, change_mean_EI @ then_EI.mT, change_mean_EI @ change_EI.mT)


def relative_norm_change(moment: SecondMoment, then_EI: Tensor, now_EI: Tensor) -> float:
    """Relative change of the root mean square norm of a modality's embeddings on a dataset.

    √( tr(W C Wᵀ) now / then ) − 1: 0 if norms stay, or if embeddings were all zero then, and −1 if all have become zero.
    """
    before, after = _square_norm(moment, then_EI), _square_norm(moment, now_EI)
    if before <= 0:
        return 0.0
    return float((max(after, 0.0) / before) ** 0.5) - 1.0


def _square_norm(moment: SecondMoment, weight_EI: Tensor) -> float:
    """Mean of |W x|² over the rows: tr(W C Wᵀ) = Σ (W C) ∘ W."""
    weight_EI = weight_EI.to(moment.sum_II)
    return float(((weight_EI @ moment.mean_II) * weight_EI).sum())


# --- Quality ------------------------------------------------------------------------------------


def quality_loss(moments: PairMoments, then: PairWeights, now: PairWeights) -> float:
    """L of a whole dataset under today's heads, equation (7), in float64.

    −1 under the heads that learned it; below −1, better than then; 0, the loss of heads that score
    everything 0; above 0, worse than nothing. It is 0 for any heads if the dataset was learned so
    badly that there is nothing to measure against: all scores zero then (a ≤ 0), or true pairs
    scored no higher than zero on average (b ≤ 0), where dividing by b would reward pushing them
    apart.
    """
    size, agreement = size_and_agreement(moments, then.double())
    a, b = float(size), float(agreement)
    # a is a mean of squared scores and b a mean of scores: √a is the scale to compare b with.
    if a <= 0 or b <= _ZERO * a**0.5:
        return 0.0
    # (7) under today's heads, with a and b from the version that learned the dataset.
    size, agreement = size_and_agreement(moments, now.double())
    return float(size / a - 2 * agreement / b)


def size_and_agreement(moments: PairMoments, weights: PairWeights) -> tuple[Tensor, Tensor]:
    """(tr(C_u G C_v Gᵀ), tr(Gᵀ X)): mean square of all scores, and mean score of true pairs.

    Scalars in the precision of the heads, differentiable in them.
    """
    first_EI, second_EJ = weights.first_EI, weights.second_EJ
    # M = W C Wᵀ of both sides (E × E), and tr(M_u M_v) = Σ M_u ∘ M_vᵀ.
    first_EE = first_EI @ moments.first.mean_II.to(first_EI) @ first_EI.mT
    second_EE = second_EJ @ moments.second.mean_II.to(second_EJ) @ second_EJ.mT
    cross_IJ = (moments.cross_IJ / max(moments.count, 1)).to(first_EI)
    # tr(Gᵀ X) = tr(W_u X W_vᵀ) = Σ (W_u X) ∘ W_v.
    return (first_EE * second_EE.mT).sum(), ((first_EI @ cross_IJ) * second_EJ).sum()


# --- Optimality ---------------------------------------------------------------------------------


def attainable(moments: PairMoments, width: int) -> float:
    """Σ σ_k² of (14) for heads of `width`: a number of the dataset alone, from 0 to `width`.

    It is about the rows that the moments are of. With fewer rows than features any pairing can be
    learned by heart, and every σ_k is 1.
    """
    mean = moments.mean
    sides = [_on_host(side.sum_II) for side in (mean.first, mean.second)]
    if _are_all_one(sides, moments.count, width):
        return float(width)
    first_IK, second_JL = (_inverse_root(side_II) for side_II in sides)
    values_K = torch.linalg.svdvals(first_IK.mT @ mean.cross_IJ.to(first_IK) @ second_JL)
    # Rounding aside none exceeds 1: a correlation.
    return float(values_K[:width].clamp_max(1).square().sum())


def _are_all_one(sides: list[Tensor], rows: int, width: int) -> bool:
    """Whether `width` correlations must be 1.

    N rows span N dimensions at most, so that what features of ranks r and q span has r + q − N dimensions in
    common at least, and as many correlations are 1. Ranks are computed while their bounds leave it open.
    """
    smaller_II, larger_II = sorted(sides, key=len)
    bound = min(len(smaller_II), rows) + min(len(larger_II), rows) - rows
    if bound < width:
        return False
    rank = _rank(smaller_II)
    if rank + min(len(larger_II), rows) - rows < width:
        return False
    return rank + _rank(larger_II) - rows >= width


def _rank(mean_II: Tensor) -> int:
    return int(_has_energy(torch.linalg.eigvalsh(mean_II)).sum())


def lowest_loss(moments: PairMoments, then: PairWeights, attainable: float) -> float:
    """The lowest `quality_loss` that any two heads of a width reach, (14): −1 or below.

    `attainable`: that of the moments and the width. 0, as `quality_loss`, if there is nothing to
    measure against.
    """
    size, agreement = size_and_agreement(moments, then.double())
    a, b = float(size), float(agreement)
    if a <= 0 or b <= _ZERO * a**0.5:
        return 0.0
    return -a / b**2 * attainable


def _on_host(mean_II: Tensor) -> Tensor:
    return (mean_II + mean_II.mT).to("cpu", torch.float64) / 2


def _has_energy(values_I: Tensor) -> Tensor:
    """Mask of the eigenvalues (rising) above rounding."""
    return values_I > _NO_ENERGY * values_I[-1]


def _inverse_root(mean_II: Tensor) -> Tensor:
    """Columns (I × K) V s^-½: C^-½ on the span of C, in the coordinates of its eigenvectors."""
    values_I, vectors_II = torch.linalg.eigh(mean_II)
    kept_I = _has_energy(values_I)
    root_IK: Tensor = vectors_II[:, kept_I] / values_I[kept_I].sqrt()
    return root_IK
