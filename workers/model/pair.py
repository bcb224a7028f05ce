"""The two heads of a pair in eigen-coordinates.

Shapes: L rows, E width of the embeddings, I and J widths of what the two heads read.

A head is W = W₀ + V M Uᵀ with orthonormal V (E × E) and U (I × I) and a trained M (E × I), so

    W x = V (VᵀW₀U + M) Uᵀx

Rows are rotated by Uᵀ once, before training. `start_EI` is VᵀW₀U. The rotation V of the embeddings
is left out: scores are inner products, so only the rotation between the two heads' bases matters,
V₂ᵀV₁, and that is the identity if they share one basis.
"""

import math
from dataclasses import dataclass
from functools import partial
from weakref import proxy

import torch
from torch import Tensor, nn

from workers.model.heads import as_read, unit_rows
from workers.nullspace.conditioning import Conditioning, Lift
from workers.nullspace.mask import UpdateSpace


class PairInEigenCoordinates(nn.Module):
    """W = W₀ + V M Uᵀ for both heads of a pair; trains M, starting at zero.

    Gradients of blocked entries are set to zero before the optimizer or DDP reads them. An elementwise
    optimizer leaves those entries exactly at zero, and its weight decay acts on the change alone.
    Masking is linear, so before DDP's all-reduce it gives the same as after it.
    Everything is in the precision of the given weights.
    """

    def __init__(
        self, first: tuple[Tensor, UpdateSpace], second: tuple[Tensor, UpdateSpace]
    ) -> None:
        super().__init__()
        self.first, self.second = HeadInEigenCoordinates(*first), HeadInEigenCoordinates(*second)
        first_EE, second_EE = (space.outputs.vectors_II for _, space in (first, second))
        self.register_buffer("rotation_EE", (second_EE.mT @ first_EE).to(first[0]))
        self.rotation_EE: Tensor
        self._one_basis = torch.equal(first_EE, second_EE)

    def forward(self, first_LI: Tensor, second_LJ: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of rotated rows, both in the output coordinates of the second head.

        With two bases the first head's embeddings are rotated, which costs half as much as the heads.
        """
        return self.first_outputs(first_LI), self.second(second_LJ)

    def first_outputs(self, rotated_LI: Tensor) -> Tensor:
        """Embeddings of rows of the first modality in the output coordinates of the second head."""
        first_LE: Tensor = self.first(rotated_LI)
        return first_LE if self._one_basis else first_LE @ self.rotation_EE.mT

    def record_gradients(self, is_on: bool) -> None:
        """Let the next backward record how much of the gradient the masks remove, or stop that."""
        for head in (self.first, self.second):
            head.recorded = [] if is_on else None

    def removed_share(self) -> float:
        """Share of the gradient's square that the masks removed in a recorded backward."""
        recorded = [each for head in (self.first, self.second) for each in head.recorded or []]
        if not recorded:
            return 0.0
        whole, left = (float(sum(side)) for side in zip(*recorded, strict=True))
        return 1 - left / whole if whole > 0 else 0.0

    def gradient_norm(self) -> float:
        """Norm of the gradient of both changes together, after the mask."""
        gradients = [change.grad for change in self.changes if change.grad is not None]
        return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))

    def drift_so_far(self) -> float | None:
        """First-order estimate of the drift of earlier scores, relative to their size.

        The larger of the two heads'. None if there are no earlier scores.
        """
        drifts = [head.drift_so_far() for head in (self.first, self.second)]
        return max((drift for drift in drifts if drift is not None), default=None)

    @property
    def changes(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The trained parameters: M of the first and of the second head."""
        return self.first.change_EI, self.second.change_EI


class HeadInEigenCoordinates(nn.Module):
    """One head: `start_EI` is VᵀW₀U, `change_EI` is M."""

    def __init__(self, weight_EI: Tensor, space: UpdateSpace) -> None:
        super().__init__()
        self.space = space
        # In float64: with the identity for V and U the start must be W₀ itself, to the last bit.
        outputs_EE, inputs_II = space.outputs.vectors_II, space.inputs.vectors_II
        start_EI = outputs_EE.mT @ weight_EI.double() @ inputs_II
        self.register_buffer("start_EI", start_EI.to(weight_EI))
        self.register_buffer("free_EI", space.free_EI.to(weight_EI))
        self._blocks = not bool(space.free_EI.all())
        self.start_EI: Tensor
        self.free_EI: Tensor
        # M starts at zero, so an entry without a gradient stays exactly zero.
        self.change_EI = nn.Parameter(torch.zeros_like(self.start_EI))
        # A weak reference: a hook that refers to its own module is a cycle that torch does not free.
        block = partial(HeadInEigenCoordinates.block, proxy(self))  # type: ignore[arg-type]
        self.change_EI.register_post_accumulate_grad_hook(block)  # type: ignore[no-untyped-call]
        # Squares of the gradient before and after the mask; None: not recorded.
        self.recorded: list[tuple[Tensor, Tensor]] | None = None

    @property
    def weight_EI(self) -> Tensor:
        """The head now, in eigen-coordinates."""
        return self.start_EI + self.change_EI

    def forward(self, rotated_LI: Tensor) -> Tensor:
        # (VᵀW₀U + M) applied to Uᵀx, row by row.
        return rotated_LI @ self.weight_EI.mT

    def drift_so_far(self) -> float | None:
        """√(Σ r_i s_j M_ij² / Σ r_i s_j (VᵀW₀U)_ij²); None if no earlier score depends on the head."""
        outputs_E = self.space.outputs.values_I.to(self.start_EI)
        inputs_I = self.space.inputs.values_I.to(self.start_EI)
        # Σ_ij r_i m_ij² s_j = r · (m² s).
        moved, size = (
            float(outputs_E @ (entries_EI.detach().square() @ inputs_I))
            for entries_EI in (self.change_EI, self.start_EI)
        )
        return (moved / size) ** 0.5 if size > 0 else None

    def block(self, change_EI: Tensor) -> None:
        """Mask the gradient in place, before DDP or the optimizer reads it."""
        gradient_EI = change_EI.grad
        if gradient_EI is None:
            return
        free_EI = self.free_EI if self._blocks else 1.0
        if self.recorded is not None:
            self.recorded.append(
                (gradient_EI.square().sum(), (gradient_EI * free_EI).square().sum())
            )
        if self._blocks:
            gradient_EI.mul_(self.free_EI)


@dataclass(frozen=True)
class RotatedFeatures:
    """From raw features to what a head reads, in its eigen-coordinates: one product instead of two.

    With c = (x − μ) · map, a matrix, a head reads [c / |c|, 1] and the rotated row is [c / |c|, 1] U. Let U_F
    (F × I) be the rows of U that belong to the feature and u (I) the last one. U_F has orthonormal
    rows, so |c U_F| = |c|, and

        [c / |c|, 1] U = c U_F / |c U_F| + u,     c U_F = (x − μ) · (map U_F)

    A lift lies between the two maps, so its rows need both products.
    """

    conditioning: Conditioning | None
    lift: Lift | None
    map_FI: Tensor
    constant_I: Tensor

    @classmethod
    def from_space(
        cls,
        conditioning: Conditioning | None,
        lift: Lift | None,
        space: UpdateSpace,
        device: torch.device,
    ) -> "RotatedFeatures":
        """The transform of a modality to the inputs of its update space."""
        vectors_II = space.inputs.vectors_II
        map_FI = vectors_II[:-1].float()
        if conditioning and _is_fused(conditioning, lift):
            map_FI = (conditioning.map.double() @ vectors_II[:-1]).float()
        conditioning = conditioning.to(device) if conditioning else None
        lift = lift.to(device) if lift else None
        return cls(conditioning, lift, map_FI.to(device), vectors_II[-1].float().to(device))

    def __call__(self, raw_BF: Tensor) -> Tensor:
        """Rows (B × I)."""
        if self.conditioning and _is_fused(self.conditioning, self.lift):
            rotated_BI = self.conditioning.centred(unit_rows(raw_BF)) @ self.map_FI
            return torch.nn.functional.normalize(rotated_BI, dim=1).add_(self.constant_I)
        feature_BF = as_read(raw_BF, self.conditioning, self.lift)
        return feature_BF @ self.map_FI + self.constant_I


def _is_fused(conditioning: Conditioning, lift: Lift | None) -> bool:
    """Whether one product does both maps: rows are scaled to unit length, as a subclass need not do."""
    return lift is None and type(conditioning) is Conditioning and conditioning.map.ndim == 2


def trained_weight(weight_EI: Tensor, change_EI: Tensor, space: UpdateSpace) -> Tensor:
    """Back to the original coordinates: W₀ + V M Uᵀ, in the precision of W₀."""
    change_EI = space.outputs.vectors_II @ change_EI.cpu().double() @ space.inputs.vectors_II.mT
    return (weight_EI.double() + change_EI).to(weight_EI)
