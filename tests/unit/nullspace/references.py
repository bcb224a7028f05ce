"""Rules and measures to compare the maths with; the product needs none of them."""

import torch

from workers.nullspace.certificate import PairWeights, quality_loss
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
    return quality_loss(moments, then, now) - quality_loss(moments, then, then)
