"""The loss of the global batch, of which every rank computes its share.

Shapes: B rows of the global batch, L of them local, E width of the embeddings.
"""

import math

import torch
from torch import Tensor, nn

from workers.contract.model import TrainingSpec
from workers.model.loss import symmetric_info_nce, unit
from workers.model.pair import PairInEigenCoordinates
from workers.model.rows import PairedRows
from workers.train.distributed import World, gather_rows, share_of

# A learnt temperature stays in the range of CLIP's (arXiv 2103.00020: at least 0.01).
_COLDEST, _WARMEST = 0.01, 1.0


class GlobalLoss(nn.Module):
    """InfoNCE of a global batch. Holds all that is trained: two changes, perhaps a temperature."""

    def __init__(self, pair: PairInEigenCoordinates, spec: TrainingSpec, here: World) -> None:
        super().__init__()
        self.pair, self._spec, self._here = pair, spec, here
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(spec.temperature)), requires_grad=spec.learn_temperature
        )

    @property
    def temperature(self) -> float:
        """As it is now."""
        if not self._spec.learn_temperature:
            return self._spec.temperature
        return float(self._learnt().detach())

    def forward(self, batch: PairedRows) -> Tensor:
        """This rank's share of the loss, times the number of ranks: DDP averages gradients."""
        own = batch.at(share_of(len(batch), self._here))
        first_LE, second_LE = self._embeddings(own)
        everywhere = (
            gather_rows(first_LE, len(batch), self._here),
            gather_rows(second_LE, len(batch), self._here),
        )
        positive_LB = own.positives_in(batch)
        local = (first_LE, second_LE)
        learnt = self._spec.learn_temperature
        temperature = self._learnt() if learnt else self._spec.temperature
        share = symmetric_info_nce(local, everywhere, positive_LB, temperature)
        return share * self._here.size

    def _embeddings(self, rows: PairedRows) -> tuple[Tensor, Tensor]:
        first_LE, second_LE = self.pair(rows.first_NI, rows.second_NJ)
        if not self._spec.unit_vectors:
            return first_LE, second_LE
        return unit(first_LE), unit(second_LE)

    def _learnt(self) -> Tensor:
        return self.log_temperature.exp().clamp(_COLDEST, _WARMEST)
