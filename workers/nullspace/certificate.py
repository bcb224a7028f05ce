"""The forgetting certificate: how far all old scores moved, from moments alone, without old data.

Shapes: E width of the embeddings, I and J widths of the two sides' features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.moments import PairMoments


@dataclass(frozen=True)
class PairWeights:
    """The heads of the two sides of a pair at one moment in time."""

    first_EI: Tensor
    second_EJ: Tensor

    def double(self) -> "PairWeights":
        return PairWeights(self.first_EI.double(), self.second_EJ.double())


def relative_drift(moments: PairMoments, then: PairWeights, now: PairWeights) -> float:
    """Root mean square change of the scores of all row combinations, relative to their size then.

    With G = W_uᵀ W_v and mean moments C: √( tr(C_u ΔG C_v ΔGᵀ) / tr(C_u G₀ C_v G₀ᵀ) ).
    ΔG = ΔW_uᵀ W_v + W₀_uᵀ ΔW_v is kept as two stacked factors of 2E rows: cheap, exactly zero when
    nothing moved, and without the cancellation of subtracting two large products.
    """
    then, now = then.double(), now.double()
    left_2EI = torch.cat([now.first_EI - then.first_EI, then.first_EI])
    right_2EJ = torch.cat([now.second_EJ, now.second_EJ - then.second_EJ])
    change = _mean_square(moments, left_2EI, right_2EJ)
    size = _mean_square(moments, then.first_EI, then.second_EJ)
    if size <= 0:
        return 0.0 if change <= 0 else float("inf")
    return float((max(change, 0.0) / size) ** 0.5)


def _mean_square(moments: PairMoments, left_EI: Tensor, right_EJ: Tensor) -> float:
    """Mean of (x_uᵀ leftᵀ right x_v)² over all row combinations: tr(L C_u Lᵀ · R C_v Rᵀ)."""
    left_EE = left_EI @ moments.first.mean_II @ left_EI.mT
    right_EE = right_EJ @ moments.second.mean_II @ right_EJ.mT
    return float((left_EE * right_EE.mT).sum())
