"""The loss of the global batch, of which every rank computes its share.

Shapes: B rows of the global batch, L of them local, E width of the embeddings.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from cmcl.contract.model import TrainingSpec
from workers.model.loss import Everywhere, positives, symmetric_info_nce, unit
from workers.model.pair import PairInEigenCoordinates
from workers.model.rows import PairedRows
from workers.train.distributed import Gathering, World
from workers.train.rows.port import LocalBatch

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

    def forward(self, batch: LocalBatch) -> Tensor:
        """This rank's share of the loss, times the number of ranks: gradients are averaged.

        What others need of this rank is on its way while this rank computes what it can.
        """
        gather = partial(Gathering, lengths=batch.lengths, here=self._here)
        keys = gather(_keys(batch.rows))
        with self._precision(batch.rows):
            first_LE = self._as_scored(self.pair.first_outputs(batch.rows.first_NI))
            first = gather(first_LE.detach())
            second_LE = self._as_scored(self.pair.second(batch.rows.second_NJ))
            second = gather(second_LE.detach())
            positive_LB = _positives(batch.rows, keys.wait())
            everywhere = Everywhere(
                first.wait(), second.wait(), lambda rows_LX: gather(rows_LX).wait()
            )
            share = symmetric_info_nce(
                (first_LE, second_LE),
                positive_LB,
                self._learnt() if self._spec.learn_temperature else self._spec.temperature,
                everywhere if self._here.size > 1 else None,
            )
        return share * self._here.size

    def _as_scored(self, outputs_LE: Tensor) -> Tensor:
        if not self._spec.unit_vectors:
            return outputs_LE
        exact = torch.promote_types(outputs_LE.dtype, torch.float32)
        return unit(outputs_LE.to(exact)).to(outputs_LE.dtype)

    def _precision(self, rows: PairedRows) -> torch.autocast:
        """Products of an update in bfloat16 where the spec asks for it."""
        is_on = self._spec.precision == "bfloat16"
        return torch.autocast(rows.first_NI.device.type, dtype=torch.bfloat16, enabled=is_on)

    def _learnt(self) -> Tensor:
        return self.log_temperature.exp().clamp(_COLDEST, _WARMEST)


def _keys(rows: PairedRows) -> Tensor:
    return torch.stack([rows.first_keys_N, rows.second_keys_N], dim=1)


def _positives(local: PairedRows, keys_B2: Tensor) -> Tensor:
    return positives(local.first_keys_N, local.second_keys_N, *keys_B2.unbind(dim=1))
