"""The two heads of a pair in eigen-coordinates.

Shapes: L rows, E width of the embeddings, I and J widths of what the two heads read.
"""

import math
from dataclasses import dataclass
from functools import partial
from weakref import proxy

import torch
from torch import Tensor, nn

from workers.model.features import unit_rows
from workers.nullspace.conditioning import Conditioning
from workers.nullspace.mask import UpdateSpace


class PairInEigenCoordinates(nn.Module):
    """W = W₀ + V M Uᵀ for both heads of a pair; trains M, starting at zero.

    Gradients of blocked entries are zeroed before anything else sees them, so an elementwise
    optimizer leaves those entries exactly at zero, and its weight decay acts on the change alone.
    Masking is linear and comes before DDP's all-reduce: the same as masking after it.
    Everything is in the precision of the weights that it is given.
    """

    def __init__(
        self, first: tuple[Tensor, UpdateSpace], second: tuple[Tensor, UpdateSpace]
    ) -> None:
        super().__init__()
        self.first, self.second = HeadInEigenCoordinates(*first), HeadInEigenCoordinates(*second)
        first_EE, second_EE = (space.outputs.vectors_II for _, space in (first, second))
        self.register_buffer("turn_EE", (second_EE.mT @ first_EE).to(first[0]))
        self.turn_EE: Tensor
        self._one_basis = torch.equal(first_EE, second_EE)

    def forward(self, first_LI: Tensor, second_LJ: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of rotated rows, both in the output coordinates of the second head.

        Scores are inner products and do not see a common rotation, so one turn is enough, and none
        where both heads have one basis: it costs half of what the heads do.
        """
        return self.first_outputs(first_LI), self.second(second_LJ)

    def first_outputs(self, rotated_LI: Tensor) -> Tensor:
        """Embeddings of rows of the first modality in the output coordinates of the second head."""
        first_LE: Tensor = self.first(rotated_LI)
        return first_LE if self._one_basis else first_LE @ self.turn_EE.mT

    def look(self, is_on: bool) -> None:
        """Whether the next backward notes how much of the gradient the masks remove."""
        for head in (self.first, self.second):
            head.seen = [] if is_on else None

    def removed_share(self) -> float:
        """Share of the gradient's square that the masks removed in a backward that was looked at."""
        seen = [each for head in (self.first, self.second) for each in head.seen or []]
        whole, left = (float(sum(side)) for side in zip(*seen, strict=True)) if seen else (0.0, 0.0)
        return 1 - left / whole if whole > 0 else 0.0

    def gradient_norm(self) -> float:
        """Of both changes together, blocked entries without any."""
        gradients = [change.grad for change in self.changes if change.grad is not None]
        return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))

    def drift_so_far(self) -> float | None:
        """The larger of what the heads' changes do to earlier scores, to first order and relative to
        their size; None where nothing was learned before."""
        drifts = [head.drift_so_far() for head in (self.first, self.second)]
        return max((drift for drift in drifts if drift is not None), default=None)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Both heads as they are now: rotated inputs to the output coordinates of the second."""
        first_EI, second_EI = self.first.weight_EI, self.second.weight_EI
        if not self._one_basis:
            first_EI = self.turn_EE @ first_EI
        return first_EI, second_EI

    @property
    def changes(self) -> tuple[nn.Parameter, nn.Parameter]:
        """What is trained: M of the first and of the second head."""
        return self.first.change_EI, self.second.change_EI


class HeadInEigenCoordinates(nn.Module):
    """One head: `start_EI` is Vᵀ W₀ U, `change_EI` is M."""

    def __init__(self, weight_EI: Tensor, space: UpdateSpace) -> None:
        super().__init__()
        self.space = space
        outputs_EE, inputs_II = space.outputs.vectors_II, space.inputs.vectors_II
        start_EI = outputs_EE.mT @ weight_EI.double() @ inputs_II
        self.register_buffer("start_EI", start_EI.to(weight_EI))
        self.register_buffer("free_EI", space.free_EI.to(weight_EI))
        self._blocks = not bool(space.free_EI.all())
        self.start_EI: Tensor
        self.free_EI: Tensor
        self.change_EI = nn.Parameter(torch.zeros_like(self.start_EI))
        # Weak: torch does not see through a hook that holds what its own tensor belongs to.
        block = partial(HeadInEigenCoordinates.block, proxy(self))  # type: ignore[arg-type]
        self.change_EI.register_post_accumulate_grad_hook(block)  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Tensor, Tensor]] | None = None

    @property
    def weight_EI(self) -> Tensor:
        """The head now, in eigen-coordinates."""
        return self.start_EI + self.change_EI

    def forward(self, rotated_LI: Tensor) -> Tensor:
        return rotated_LI @ self.weight_EI.mT

    def drift_so_far(self) -> float | None:
        """√(Σ r_i s_j M_ij² / Σ r_i s_j (VᵀW₀U)_ij²); None where no score is at stake."""
        outputs_E = self.space.outputs.values_I.to(self.start_EI)
        inputs_I = self.space.inputs.values_I.to(self.start_EI)
        moved, size = (
            float(outputs_E @ (entries_EI.detach().square() @ inputs_I))
            for entries_EI in (self.change_EI, self.start_EI)
        )
        return (moved / size) ** 0.5 if size > 0 else None

    def block(self, change_EI: Tensor) -> None:
        """In place, before DDP or anything else reads the gradient."""
        gradient_EI = change_EI.grad
        if gradient_EI is None:
            return
        free_EI = self.free_EI if self._blocks else 1.0
        if self.seen is not None:
            self.seen.append((gradient_EI.square().sum(), (gradient_EI * free_EI).square().sum()))
        if self._blocks:
            gradient_EI.mul_(self.free_EI)


@dataclass(frozen=True)
class RotatedFeatures:
    """From raw features to what a head reads, in its eigen-coordinates: one product instead of two.

    With c = (x − μ) map, `[c / |c|, 1] U` is `c U_F / |c U_F| + u`, where U_F are the rows of U that
    belong to the feature and u the last one: U_F has orthonormal rows, so it keeps lengths.
    """

    conditioning: Conditioning
    map_FI: Tensor
    constant_I: Tensor

    @classmethod
    def of(
        cls, conditioning: Conditioning, space: UpdateSpace, device: torch.device
    ) -> "RotatedFeatures":
        """Those of a conditioned modality in the inputs of its update space."""
        vectors_II = space.inputs.vectors_II
        map_FI = (conditioning.map_FF.double() @ vectors_II[:-1]).float()
        return cls(conditioning.to(device), map_FI.to(device), vectors_II[-1].float().to(device))

    def __call__(self, raw_BF: Tensor) -> Tensor:
        """Rows (B × I)."""
        turned_BI = self.conditioning.centred(unit_rows(raw_BF)) @ self.map_FI
        return torch.nn.functional.normalize(turned_BI, dim=1).add_(self.constant_I)


def rotate(prepared_NI: Tensor, space: UpdateSpace) -> Tensor:
    """Rows in the input coordinates of a head: once, before training, and never per update."""
    return prepared_NI @ space.inputs.vectors_II.to(prepared_NI)


def trained_weight(weight_EI: Tensor, change_EI: Tensor, space: UpdateSpace) -> Tensor:
    """Back to the original coordinates: W₀ + V M Uᵀ, in the precision of W₀."""
    turned_EI = space.outputs.vectors_II @ change_EI.cpu().double() @ space.inputs.vectors_II.mT
    return (weight_EI.double() + turned_EI).to(weight_EI)
