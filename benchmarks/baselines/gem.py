"""Gradient episodic memory: an update must not increase the loss of any memory.

Shapes: K memories, P entries of both heads' changes, E width of the embeddings, I width of what a
head reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.replay_memory import (
    MovingHeads,
    ReplayMethod,
    StoredRows,
    loss_on,
    memories_for,
)
from workers.methods.method import Batch, TrainingContext, UpdateRule
from workers.model.pair import PairInEigenCoordinates

# A coordinate is freed while its pull exceeds this share of the largest linear term.
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class GEM(ReplayMethod):
    """Replace g by g + Gᵀ v where it opposes a memory's gradient g_k, the rows of G.

    v minimises ½ vᵀGGᵀv + gᵀGᵀv subject to v ≥ margin (arXiv 1706.08840, eq. 11, and its published
    code for the margin). Memories of pairs that share no head with the new one have no gradient and
    are left out.
    """

    margin: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.margin >= 0:
            raise ValueError(f"margin is {self.margin}; permitted are 0 and more")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        memories = memories_for(context, pair.rotation_EE.device)
        return _GEMRule(self.margin, context, pair, memories)


class _GEMRule(UpdateRule):
    def __init__(
        self,
        margin: float,
        context: TrainingContext,
        pair: PairInEigenCoordinates,
        memories: Sequence[StoredRows],
    ) -> None:
        self._margin, self._memories, self._pair = margin, memories, pair
        self._heads, self._context = MovingHeads(context, pair), context

    def backward(self, batch: Batch) -> Tensor:
        loss = super().backward(batch)
        if self._memories:
            gradients = [parameter.grad for parameter in self._pair.changes]
            gradient_P = _flat([gradient for gradient in gradients if gradient is not None])
            self._write(without_conflict(gradient_P, self._memory_gradients(), self._margin))
        return loss

    def _memory_gradients(self) -> Tensor:
        return torch.stack([self._memory_gradient(memory) for memory in self._memories])

    def _memory_gradient(self, memory: StoredRows) -> Tensor:
        """Compute the gradient outside DDP: all ranks hold all memories, so no reduction is
        needed."""
        loss = loss_on(self._heads.now(), memory.pair, memory.rows, self._context)
        return _flat(
            torch.autograd.grad(loss, self._pair.changes, allow_unused=True, materialize_grads=True)
        )

    def _write(self, gradient_P: Tensor) -> None:
        sizes = [parameter.numel() for parameter in self._pair.changes]
        for parameter, part in zip(self._pair.changes, torch.split(gradient_P, sizes), strict=True):
            parameter.grad = part.view_as(parameter)


def without_conflict(gradient_P: Tensor, memories_KP: Tensor, margin: float) -> Tensor:
    """Return g if it conflicts with no memory, else g + Gᵀ v."""
    along_K = memories_KP @ gradient_P
    if not bool((along_K < 0).any()):
        return gradient_P
    gram_KK = memories_KP @ memories_KP.mT
    weight_K = smallest_quadratic(gram_KK, along_K, margin)
    return gradient_P + memories_KP.mT @ weight_K.to(memories_KP)


def smallest_quadratic(gram_KK: Tensor, linear_K: Tensor, least: float) -> Tensor:
    """Return the v ≥ `least` that minimises ½ vᵀ gram v + linearᵀ v, in float64 on the CPU.

    `gram_KK` is positive semidefinite. With v = least + s this is non-negative least squares, and
    the active-set method of Lawson and Hanson (Solving Least Squares Problems, chapter 23) ends
    after finitely many exact solutions; coordinates are scaled to a unit diagonal.
    """
    gram_KK, linear_K = gram_KK.detach().cpu().double(), linear_K.detach().cpu().double()
    scale_K = gram_KK.diagonal().clamp_min(0).sqrt()
    usable_K = scale_K > 0
    pull_K = -(linear_K + least * gram_KK.sum(dim=1))[usable_K] / scale_K[usable_K]
    unit_KK = gram_KK[usable_K][:, usable_K] / torch.outer(scale_K[usable_K], scale_K[usable_K])
    value_K = torch.full_like(linear_K, least)
    value_K[usable_K] += _nonnegative(unit_KK, pull_K) / scale_K[usable_K]
    return value_K


def _nonnegative(gram_KK: Tensor, pull_K: Tensor) -> Tensor:
    """Return the s ≥ 0 that minimises ½ sᵀ gram s − pullᵀ s."""
    value_K = torch.zeros_like(pull_K)
    free_K = torch.zeros_like(pull_K, dtype=torch.bool)
    for _ in range(3 * len(pull_K)):  # SciPy's bound; in theory no free set repeats
        rise_K = (pull_K - gram_KK @ value_K).masked_fill(free_K, -torch.inf)
        if float(rise_K.max()) <= _TOLERANCE * float(pull_K.abs().max()):
            break
        free_K[rise_K.argmax()] = True
        value_K, free_K = _settle(gram_KK, pull_K, value_K, free_K)
    return value_K


def _settle(
    gram_KK: Tensor, pull_K: Tensor, value_K: Tensor, free_K: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve for the free coordinates, and fix those at zero that would become negative, one by
    one."""
    value_K, free_K = value_K.clone(), free_K.clone()
    while True:
        target_K = torch.zeros_like(value_K)
        inverse = torch.linalg.pinv(gram_KK[free_K][:, free_K], hermitian=True)
        target_K[free_K] = inverse @ pull_K[free_K]
        falling_K = free_K & (target_K <= 0)
        if not bool(falling_K.any()):
            return target_K, free_K
        room_K = (value_K / (value_K - target_K)).nan_to_num(0.0).where(falling_K, torch.inf)
        stops = room_K.argmin()
        value_K = (value_K + room_K[stops] * (target_K - value_K)).clamp_min(0)
        value_K[stops], free_K[stops] = 0.0, False


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
