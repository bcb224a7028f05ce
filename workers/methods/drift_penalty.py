"""The certificate as a penalty: what the mask leaves free pays for the scores that it moves.

Shapes: E width of the embeddings, I width of what a head reads.

In eigen-coordinates the first-order change of earlier scores is elementwise, Σ r_i s_j M_ij², and
so is its gradient: no matrix product per update. Relative to the size of the scores before,
Σ r_i s_j (VᵀW₀U)_ij², it is the square of the relative drift of all earlier datasets together.
"""

from torch import Tensor

from workers.methods.port import Batch, UpdateRule
from workers.model.pair import HeadInEigenCoordinates, PairInEigenCoordinates


class PenalisedDrift(UpdateRule):
    """The loss plus `weight` times the squared relative drift that each head causes alone."""

    def __init__(self, pair: PairInEigenCoordinates, weight: float) -> None:
        slopes = [(head, _slope(head, weight)) for head in (pair.first, pair.second)]
        self._slopes = [(head, slope_EI) for head, slope_EI in slopes if slope_EI is not None]

    def backward(self, batch: Batch) -> Tensor:
        loss = super().backward(batch)
        for head, slope_EI in self._slopes:
            gradient_EI = head.change_EI.grad
            if gradient_EI is not None:
                gradient_EI.addcmul_(slope_EI, head.change_EI.detach())
        return loss


def _slope(head: HeadInEigenCoordinates, weight: float) -> Tensor | None:
    """Twice the weight of each free entry's square; None where nothing has a price."""
    energy_EI = head.space.energy_EI.to(head.start_EI.device)
    size = float((energy_EI * head.start_EI.double().square()).sum())
    if weight == 0 or size <= 0:
        return None
    return (2 * weight / size * energy_EI * head.free_EI).to(head.start_EI)
