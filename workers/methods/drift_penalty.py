"""The certificate as a penalty: what the mask leaves free pays for the scores that it moves.

Shapes: E width of the embeddings, I width of what a head reads.

In eigen-coordinates the first-order change of earlier scores is elementwise, Σ r_i s_j M_ij², and
so is its gradient: no matrix product per update. Relative to the size of the scores before,
Σ r_i s_j (VᵀW₀U)_ij², it is the square of the relative drift of all earlier datasets together.
"""

import torch
from torch import Tensor

from workers.methods.port import Batch, UpdateRule
from workers.model.pair import HeadInEigenCoordinates, PairInEigenCoordinates


class PenalisedDrift(UpdateRule):
    """The loss plus `weight` times the squared relative drift that each head causes alone."""

    def __init__(self, pair: PairInEigenCoordinates, weight: float) -> None:
        self._slopes = [(head, _slope(head, weight)) for head in (pair.first, pair.second)]

    def backward(self, batch: Batch) -> Tensor:
        loss = super().backward(batch)
        for head, slope_EI in self._slopes:
            head.add_gradient(slope_EI * head.change_EI.detach())
        return loss


def _slope(head: HeadInEigenCoordinates, weight: float) -> Tensor:
    """Twice the weight of each entry's square; zeros for a head without earlier datasets."""
    energy_EI = head.space.energy_EI.to(head.start_EI.device)
    size = float((energy_EI * head.start_EI.double().square()).sum())
    if size <= 0:
        return torch.zeros_like(head.start_EI)
    return (2 * weight / size * energy_EI).to(head.start_EI)
