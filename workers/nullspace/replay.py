"""The quality certificate: how good an old dataset still is, from its moments alone.

Shapes: E width of the embeddings, I and J widths of the two sides' features.

For linear heads second moments are sufficient for the spectral contrastive loss (HaoChen et al.,
arXiv 2106.04156). With G = W_uᵀ W_v, mean moments C_u, C_v and mean cross moment X, the mean
square of the scores of all row combinations is tr(C_u G C_v Gᵀ) and the mean score of true pairs
is tr(Gᵀ X). Scaled by what both were when the dataset was learned, a and b:

    L(G) = tr(C_u G C_v Gᵀ) / a − 2 tr(Gᵀ X) / b

Along its own ray, t G₀, it is t² − 2 t: lowest, at −1, for the heads that learned the dataset.
"""

from torch import Tensor

from workers.nullspace.certificate import PairWeights
from workers.nullspace.moments import PairMoments

# A mean score of true pairs below this share of the scores' size is rounding of zero.
_ZERO = 1e-12


def quality_loss(moments: PairMoments, then: PairWeights, now: PairWeights) -> float:
    """L of a whole dataset under today's heads, in float64: −1 under the heads that learned it.

    0 is the loss of heads that score everything 0; above it, worse than nothing; below −1, better
    than when it was learned. It is 0 whatever the heads if the dataset had been learned so badly
    that there is nothing to measure against: all scores zero then (a ≤ 0), or true pairs scored
    no higher than zero on average (b ≤ 0), where a division by b would reward pushing them apart.
    """
    size, agreement = size_and_agreement(moments, then.double())
    a, b = float(size), float(agreement)
    if a <= 0 or b <= _ZERO * a**0.5:
        return 0.0
    size, agreement = size_and_agreement(moments, now.double())
    return float(size / a - 2 * agreement / b)


def quality_change(moments: PairMoments, then: PairWeights, now: PairWeights) -> float:
    """L now minus L when the dataset was learned: above 0 it got worse, below 0 better."""
    return quality_loss(moments, then, now) - quality_loss(moments, then, then)


def size_and_agreement(moments: PairMoments, weights: PairWeights) -> tuple[Tensor, Tensor]:
    """(tr(C_u G C_v Gᵀ), tr(Gᵀ X)): mean square of all scores, and mean score of true pairs.

    Scalars in the precision of the heads, differentiable in them. G itself is never formed: the
    first is tr(M_u M_v) with M = W C Wᵀ (E × E).
    """
    first_EI, second_EJ = weights.first_EI, weights.second_EJ
    first_EE = first_EI @ moments.first.mean_II.to(first_EI) @ first_EI.mT
    second_EE = second_EJ @ moments.second.mean_II.to(second_EJ) @ second_EJ.mT
    cross_IJ = (moments.cross_IJ / max(moments.count, 1)).to(first_EI)
    return (first_EE * second_EE.mT).sum(), ((first_EI @ cross_IJ) * second_EJ).sum()
