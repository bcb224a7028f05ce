"""Two certificates for old datasets, from moments alone: how far scores moved, how good they are.

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

G (I × J) is never formed. With M = W C Wᵀ (E × E), tr(C_u G C_v Gᵀ) = tr(M_u M_v).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.moments import PairMoments, SecondMoment

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
    1e-8, the root of what float64 rounds. Infinite if scores that were all zero have changed.
    """
    first = _pushed(moments.first, then.first_EI, now.first_EI)
    second = _pushed(moments.second, then.second_EJ, now.second_EJ)
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
    if size <= 0:
        return 0.0 if change <= 0 else float("inf")
    return float((max(change, 0.0) / size) ** 0.5)


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
    change_mean_EI = change_EI @ mean_II
    return _Pushed(then_EE, change_mean_EI @ then_EI.mT, change_mean_EI @ change_EI.mT)


def relative_norm_change(moment: SecondMoment, then_EI: Tensor, now_EI: Tensor) -> float:
    """Relative change of the root mean square norm of a modality's embeddings on a dataset.

    √( tr(W C Wᵀ) now / then ) − 1: 0 if norms stay, −1 if all embeddings have become zero,
    infinite if embeddings that were all zero no longer are.
    """
    before, after = _square_norm(moment, then_EI), _square_norm(moment, now_EI)
    if before <= 0:
        return 0.0 if after <= 0 else float("inf")
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
    size, agreement = size_and_agreement(moments, now.double())
    return float(size / a - 2 * agreement / b)


def size_and_agreement(moments: PairMoments, weights: PairWeights) -> tuple[Tensor, Tensor]:
    """(tr(C_u G C_v Gᵀ), tr(Gᵀ X)): mean square of all scores, and mean score of true pairs.

    Scalars in the precision of the heads, differentiable in them.
    """
    first_EI, second_EJ = weights.first_EI, weights.second_EJ
    first_EE = first_EI @ moments.first.mean_II.to(first_EI) @ first_EI.mT
    second_EE = second_EJ @ moments.second.mean_II.to(second_EJ) @ second_EJ.mT
    cross_IJ = (moments.cross_IJ / max(moments.count, 1)).to(first_EI)
    # tr(Gᵀ X) = tr(W_u X W_vᵀ) = Σ (W_u X) ∘ W_v.
    return (first_EE * second_EE.mT).sum(), ((first_EI @ cross_IJ) * second_EJ).sum()
