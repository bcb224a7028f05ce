"""The two heads of a pair in eigen-coordinates, and the optimizer that trains them.

Shapes: L local rows, E width of the embeddings, I and J widths of what the two heads read.
"""

import torch
from torch import Tensor, nn

from workers.contract.model import TrainingSpec
from workers.methods.port import UpdateSpace
from workers.model.loss import unit


class PairInEigenCoordinates(nn.Module):
    """W = W₀ + V M Uᵀ for both heads of a pair; trains M, starting at zero.

    Gradients of blocked entries are zeroed before anything else sees them, so an elementwise
    optimizer leaves those entries exactly at zero, and its weight decay acts on the change alone.
    Masking is linear and comes before DDP's all-reduce: the same as masking after it.
    """

    def __init__(
        self, first: "tuple[Tensor, UpdateSpace]", second: "tuple[Tensor, UpdateSpace]"
    ) -> None:
        super().__init__()
        self.first, self.second = _Head(*first), _Head(*second)
        turn_EE = second[1].outputs.vectors_II.mT @ first[1].outputs.vectors_II
        self.register_buffer("turn_EE", turn_EE.float())
        self.turn_EE: Tensor

    def forward(self, first_LI: Tensor, second_LJ: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings of rotated rows, both in the output coordinates of the second head.

        Scores are inner products and do not see a common rotation, so one turn is enough.
        """
        first_LE = self.first(first_LI) @ self.turn_EE.mT
        return unit(first_LE), unit(self.second(second_LJ))


class _Head(nn.Module):
    def __init__(self, weight_EI: Tensor, space: UpdateSpace) -> None:
        super().__init__()
        outputs_EE, inputs_II = space.outputs.vectors_II, space.inputs.vectors_II
        start_EI = outputs_EE.mT @ weight_EI.double() @ inputs_II
        self.register_buffer("start_EI", start_EI.float())
        self.register_buffer("free_EI", space.free_EI.float())
        self.start_EI: Tensor
        self.free_EI: Tensor
        self.change_EI = nn.Parameter(torch.zeros_like(self.start_EI))
        self.change_EI.register_hook(self._block)  # type: ignore[no-untyped-call]

    def forward(self, rotated_LI: Tensor) -> Tensor:
        return rotated_LI @ (self.start_EI + self.change_EI).mT

    def _block(self, gradient_EI: Tensor) -> Tensor:
        return gradient_EI * self.free_EI


def rotate(prepared_NI: Tensor, space: UpdateSpace) -> Tensor:
    """Rows in the input coordinates of a head: once, before training, and never per update."""
    return prepared_NI @ space.inputs.vectors_II.to(prepared_NI)


def trained_weight(weight_EI: Tensor, change_EI: Tensor, space: UpdateSpace) -> Tensor:
    """Back to the original coordinates: W₀ + V M Uᵀ, float32."""
    turned_EI = space.outputs.vectors_II @ change_EI.cpu().double() @ space.inputs.vectors_II.mT
    return (weight_EI.double() + turned_EI).float()


def adamw(module: nn.Module, spec: TrainingSpec) -> torch.optim.Optimizer:
    """AdamW over the changes; fused where every parameter's device has it."""
    return torch.optim.AdamW(
        module.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
    )
