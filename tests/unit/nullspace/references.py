"""Rules and measures to compare the maths with; the product needs none of them."""

import torch
from torch import Tensor

from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import PairMoments
from workers.nullspace.subspace import EigenBasis


def rectangular_mask(outputs: EigenBasis, inputs: EigenBasis, kept_energy: float) -> torch.Tensor:
    """Free entries (bool, E × I): all but those where both directions are protected.

    Protected are the leading directions that keep `kept_energy` of the trace on either side: the
    dual-sided projection of arXiv 2503.14963, made elementwise.
    """
    free_EI = torch.ones(outputs.width, inputs.width, dtype=torch.bool)
    free_EI[: outputs.rank_at(kept_energy), : inputs.rank_at(kept_energy)] = False
    return free_EI


def free_energy(space: UpdateSpace) -> float:
    """Share of Σ r_i s_j that is left unblocked, 0 to 1; 0 if there is none."""
    energy_EI = space.energy_EI
    total = float(energy_EI.sum())
    return float((energy_EI * space.free_EI).sum()) / total if total > 0 else 0.0


def quality_change(moments: PairMoments, then: PairWeights, now: PairWeights) -> float:
    """L now minus L when the dataset was learned: above 0 it got worse, below 0 better."""
    return PairScores(moments).quality(then, now) - PairScores(moments).quality(then, then)


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


def in_double(heads: PairWeights) -> PairWeights:
    """The heads in float64."""
    return PairWeights(heads.first_EI.double(), heads.second_EJ.double())
