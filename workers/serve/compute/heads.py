"""A head laid out for serving: the same numbers as `ModalityHeads`, with fewer passes over them.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.model.heads import ModalityHeads, unit_rows
from workers.nullspace.conditioning import Conditioning


@dataclass(frozen=True)
class ServingHead:
    """Conditioning, weight and bias of one modality.

    The bias stands by itself, so that no row is copied to append a 1. Both are views: a copy laid out
    as the product reads it was no faster (docs/log.md), and a swap would have to make it.
    """

    conditioning: Conditioning | None
    weight_EF: Tensor
    bias_E: Tensor

    @classmethod
    def of(cls, heads: ModalityHeads, modality: str) -> "ServingHead":
        """The head of this modality. Raises KeyError."""
        weight_EI = heads.weights[modality]
        return cls(heads.conditioning.get(modality), weight_EI[:, :-1], weight_EI[:, -1])

    def outputs(self, raw_BF: Tensor) -> Tensor:
        """What the head gives (B × E), before it is brought to unit length."""
        unit_BF = unit_rows(raw_BF)
        read_BF = self.conditioning(unit_BF) if self.conditioning else unit_BF
        return torch.nn.functional.linear(read_BF, self.weight_EF, self.bias_E)


def unit_length(outputs_BE: Tensor) -> Tensor:
    """Rows of length 1."""
    return torch.nn.functional.normalize(outputs_BE, dim=1)
