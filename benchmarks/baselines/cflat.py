"""C-FLAT: a step along the gradient of the loss and of its flatness, from four passes.

Shapes: E width of the embeddings, I width of what a head reads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.methods.method import Batch, Method, TrainingContext, UpdateRule
from workers.model.pair import PairInEigenCoordinates

Changes = tuple[Tensor, Tensor]
"""One tensor per head, in the shape of its change (E × I)."""


@dataclass(frozen=True)
class CFlat(Method):
    """Step with g1 + λ (g3 − g2): sharpness of order zero and one (arXiv 2404.00986).

    g0 at W; g1 at W + ρ g0/|g0|; h = g1 − g0; g2 at W + ρ h/|h|; g3 at that point + ρ g2/|g2|.
    Norms are taken over both heads together. A learned temperature gets the sum of the gradients of
    the four passes, which has no effect with a scale-invariant optimizer.
    """

    radius: float = 0.2
    flatness: float = 0.2

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"radius is {self.radius}; permitted is more than 0")
        if not self.flatness >= 0:
            raise ValueError(f"flatness is {self.flatness}; permitted are 0 and more")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        return _CFlatRule(self.radius, self.flatness, pair)


class _CFlatRule(UpdateRule):
    def __init__(self, radius: float, flatness: float, pair: PairInEigenCoordinates) -> None:
        self._radius, self._flatness, self._pair = radius, flatness, pair

    def backward(self, batch: Batch) -> Tensor:
        first, second = self._pair.changes
        start = (first.detach().clone(), second.detach().clone())
        loss, gradient_0 = self._gradient_at(start, batch)
        _, gradient_1 = self._gradient_at(self._climbed(start, gradient_0), batch)
        sharper = self._climbed(start, _difference(gradient_1, gradient_0))
        _, gradient_2 = self._gradient_at(sharper, batch)
        _, gradient_3 = self._gradient_at(self._climbed(sharper, gradient_2), batch)
        curvature = _difference(gradient_3, gradient_2)
        self._move_to(start)
        first.grad = gradient_1[0] + self._flatness * curvature[0]
        second.grad = gradient_1[1] + self._flatness * curvature[1]
        return loss

    def _gradient_at(self, point: Changes, batch: Batch) -> tuple[Tensor, Changes]:
        """Return loss and gradient. Uses backward(), so that DDP averages over the ranks."""
        self._move_to(point)
        first, second = self._pair.changes
        first.grad = second.grad = None
        loss = super().backward(batch)
        return loss, (_gradient(first), _gradient(second))

    def _climbed(self, point: Changes, direction: Changes) -> Changes:
        """Move `radius` along the direction; return the point itself for a zero direction."""
        norm = torch.stack([part.square().sum() for part in direction]).sum().sqrt()
        step = torch.where(norm > 0, self._radius / norm, torch.zeros_like(norm))
        return point[0] + step * direction[0], point[1] + step * direction[1]

    @torch.no_grad()
    def _move_to(self, point: Changes) -> None:
        for parameter, value_EI in zip(self._pair.changes, point, strict=True):
            parameter.copy_(value_EI)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def _difference(minuend: Changes, subtrahend: Changes) -> Changes:
    return minuend[0] - subtrahend[0], minuend[1] - subtrahend[1]
