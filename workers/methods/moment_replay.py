"""Moment replay: earlier datasets go on teaching through their moments, without their rows.

Shapes: E width of the embeddings, O of its rows in this process, I and J widths of what two heads
read.

For linear heads, second moments are sufficient statistics of the spectral contrastive loss
(arXiv 2106.04156). For a pair of modalities with mean moments C_u, C_v and cross moment X,

    L(G) = tr(C_u G C_v Gᵀ) / a − 2 tr(Gᵀ X) / b,   G = W_uᵀ W_v,

with a and b such that L = −1 at the parent's heads. With M = W C Wᵀ its gradient is closed:

    ∂L/∂W_u = 2 M_v W_u C_u / a − 2 W_v Xᵀ / b       (and alike for v)

so no graph is built. Moments are pooled by pair of modalities: the cost of an update does not grow
with the number of datasets. Everything is in the coordinates of the pair in training: inputs of
its heads rotated by U, outputs in those of its second head. Rows of the gradient do not need each
other: each process computes some of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cmcl.contract.modality import ModalityPair
from workers.methods.port import Lesson, Peers
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.certificate import PairWeights
from workers.nullspace.moments import PairMoments
from workers.nullspace.replay import size_and_agreement

Sides = tuple[Tensor, Tensor]
"""Both heads (E × I, E × J), or gradients with respect to them."""


@dataclass(frozen=True)
class _OneMoves:
    """A pair of which one side is in training: M_v and W_v Xᵀ stay as they are; O rows of both."""

    side: int
    inputs_II: Tensor
    partner_OE: Tensor
    agreement_OI: Tensor

    def add_to(self, gradients: Sides, weights: Sides, own: slice) -> Tensor:
        """This process's rows of half the gradient; answers their part of the loss."""
        weight_EI = weights[self.side]
        curvature_OI = (self.partner_OE @ weight_EI) @ self.inputs_II
        gradients[self.side][own] += curvature_OI - self.agreement_OI
        return (weight_EI[own] * (curvature_OI - 2 * self.agreement_OI)).sum()


@dataclass(frozen=True)
class _BothMove:
    """The very pair in training, seen before."""

    first_II: Tensor
    second_JJ: Tensor
    cross_IJ: Tensor
    """Divided by b, the other two by √a each."""

    def add_to(self, gradients: Sides, weights: Sides, own: slice) -> Tensor:
        """As above."""
        first_EI, second_EJ = weights
        first_OE = first_EI[own] @ self.first_II @ first_EI.mT
        second_OE = second_EJ[own] @ self.second_JJ @ second_EJ.mT
        curvature_OI = (second_OE @ first_EI) @ self.first_II
        agreement_OI = second_EJ[own] @ self.cross_IJ.mT
        gradients[0][own] += curvature_OI - agreement_OI
        gradients[1][own] += (first_OE @ second_EJ) @ self.second_JJ - first_EI[own] @ self.cross_IJ
        return (first_EI[own] * (curvature_OI - 2 * agreement_OI)).sum()


class MomentReplay:
    """The summed loss of all earlier pairs that share a modality with the pair in training."""

    def __init__(self, lesson: Lesson, pair: PairInEigenCoordinates) -> None:
        self._lesson, self._pair = lesson, pair
        self._terms: list[_OneMoves | _BothMove] | None = None

    def loss(self, peers: Peers) -> Tensor:
        """This process's share of it, times the number of processes: gradients are averaged."""
        if self._terms is None:
            self._terms = _terms(self._lesson, self._pair, peers)
        terms, own = self._terms, peers.own(len(self._pair.turn_EE))
        if not terms:
            return self._pair.turn_EE.new_zeros(())

        def evaluated(weights: Sides) -> tuple[Tensor, Sides]:
            gradients = torch.zeros_like(weights[0]), torch.zeros_like(weights[1])
            parts = [term.add_to(gradients, weights, own) for term in terms]
            return sum(parts, weights[0].new_zeros(())), gradients

        share: Tensor = _InClosedForm.apply(*self._pair.weights(), evaluated)
        return share * peers.count


class _InClosedForm(torch.autograd.Function):
    """A loss that comes with half of its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        first_EI: Tensor,
        second_EJ: Tensor,
        evaluated: Callable[[Sides], tuple[Tensor, Sides]],
    ) -> Tensor:
        loss, gradients = evaluated((first_EI, second_EJ))
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        first_EI, second_EJ = ctx.saved_tensors
        return 2 * slope * first_EI, 2 * slope * second_EJ, None


def _terms(
    lesson: Lesson, pair: PairInEigenCoordinates, peers: Peers
) -> list[_OneMoves | _BothMove]:
    turned = _Turned(lesson, pair, peers)
    found = [
        turned.term(known, moments, lesson.memory.datasets_of(known))
        for known, moments in lesson.memory.touching(lesson.pair)
    ]
    return [term for term in found if term is not None]


class _Turned:
    """Moments and heads of the parent in the coordinates of the pair in training.

    Each process turns some rows: turning takes longer than many updates.
    """

    def __init__(self, lesson: Lesson, pair: PairInEigenCoordinates, peers: Peers) -> None:
        self._pair, self._weights = lesson.pair.modalities, lesson.heads.weights
        self._peers = peers
        heads = zip(self._pair, (pair.first, pair.second), strict=True)
        self._inputs = {name: head.space.inputs.vectors_II for name, head in heads}
        self._outputs_EE = pair.second.space.outputs.vectors_II
        self._like_EI = pair.second.start_EI

    def term(
        self, pair: ModalityPair, moments: PairMoments, datasets: int
    ) -> _OneMoves | _BothMove | None:
        """The loss of a pair, counted once for each of its datasets.

        None where the parent's heads do not tell true pairs from others: nothing to keep up.
        """
        first, second = pair.modalities
        parent = PairWeights(self._weights[first], self._weights[second]).double()
        size, agreement = (float(value) for value in size_and_agreement(moments, parent))
        if size <= 0 or agreement <= 0:
            return None
        size, agreement, mean = size / datasets, agreement / datasets, moments.mean
        if set(pair.modalities) == set(self._pair):
            return self._both(mean, size, agreement)
        partner_EI = self._outputs_EE.mT @ parent.second_EJ
        partner_OI = partner_EI[self._peers.own(len(partner_EI))]
        return _OneMoves(
            side=self._pair.index(first),
            inputs_II=self._turned(mean.first.sum_II, first, first),
            partner_OE=self._like(partner_OI @ mean.second.sum_II @ partner_EI.mT / size),
            agreement_OI=self._like(
                partner_OI @ mean.cross_IJ.mT @ self._inputs[first] / agreement
            ),
        )

    def _both(self, mean: PairMoments, size: float, agreement: float) -> _BothMove:
        first, second = self._pair
        return _BothMove(
            first_II=self._turned(mean.first.sum_II / size**0.5, first, first),
            second_JJ=self._turned(mean.second.sum_II / size**0.5, second, second),
            cross_IJ=self._turned(mean.cross_IJ / agreement, first, second),
        )

    def _turned(self, moment_IJ: Tensor, first: str, second: str) -> Tensor:
        """Uᵀ moment U, with the inputs of both modalities."""
        first_II, rows = self._inputs[first], len(moment_IJ)
        own_OI = first_II[:, self._peers.own(rows)].mT
        return self._peers.gather(self._like(own_OI @ moment_IJ @ self._inputs[second]), rows)

    def _like(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._like_EI)
