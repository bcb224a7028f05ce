"""Moment replay: the loss of earlier datasets from their moments, without their rows.

Shapes: E width of the embeddings, O the rows of E in this process, I and J widths of what two heads
read.

For linear heads, second moments are sufficient statistics of the spectral contrastive loss
(arXiv 2106.04156; equation (7) of workers/nullspace/README.md). For a pair of modalities with mean
moments C_u, C_v and cross moment X,

    L(G) = tr(C_u G C_v Gᵀ) / a − 2 tr(Gᵀ X) / b,   G = W_uᵀ W_v,

with a and b such that L = −1 at the parent's heads. With M = W C Wᵀ (E × E) the two terms are
tr(M_u M_v) and tr(W_u X W_vᵀ), and the gradient is closed:

    ∂L/∂W_u = 2 M_v W_u C_u / a − 2 W_v Xᵀ / b
    ∂L/∂W_v = 2 M_u W_v C_v / a − 2 W_u X / b

So no autograd graph is built. Two cases: the pair in training itself (both heads move), and a pair
that shares one head with it (the other head, and with it M_v and W_v Xᵀ, is constant).

Moments are pooled by pair of modalities, so the cost of an update does not grow with the number of
datasets. Everything is in the coordinates of the pair in training: inputs of its heads rotated by U,
outputs in the basis of its second head. Rows of the gradient are independent, so each process
computes some of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchmarks.baselines.sampled_replay import datasets_of, touching
from cmcl.contract.modality import ModalityPair
from workers.methods.method import ReplicaGroup, TrainingContext
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.moments import PairMoments

Sides = tuple[Tensor, Tensor]
"""Both heads (E × I, E × J), or gradients with respect to them."""


@dataclass(frozen=True)
class _OneMoves:
    """A pair of which one side, u, is in training: M_v and W_v Xᵀ are constant; O rows of both."""

    side: int  # 0 or 1: which head of the pair in training is u
    inputs_II: Tensor  # C_u
    partner_OE: Tensor  # M_v / a
    agreement_OI: Tensor  # W_v Xᵀ / b

    def add_to(self, gradients: Sides, weights: Sides, own: slice) -> Tensor:
        """Add this process's rows of half the gradient; return their part of the loss."""
        weight_EI = weights[self.side]
        # M_v W_u C_u / a. Half the gradient is this minus W_v Xᵀ / b.
        curvature_OI = (self.partner_OE @ weight_EI) @ self.inputs_II
        gradients[self.side][own] += curvature_OI - self.agreement_OI
        # tr(M_u M_v) = Σ W_u ∘ (M_v W_u C_u) and tr(W_u X W_vᵀ) = Σ W_u ∘ (W_v Xᵀ), row by row.
        return (weight_EI[own] * (curvature_OI - 2 * self.agreement_OI)).sum()


@dataclass(frozen=True)
class _BothMove:
    """The pair in training itself, if it has earlier datasets."""

    first_II: Tensor  # C_u / √a
    second_JJ: Tensor  # C_v / √a
    cross_IJ: Tensor  # X / b

    def add_to(self, gradients: Sides, weights: Sides, own: slice) -> Tensor:
        """Add this process's rows of half of both gradients; return their part of the loss."""
        first_EI, second_EJ = weights
        # Own rows of M_u and M_v, each over √a: a product of the two is over a.
        first_OE = first_EI[own] @ self.first_II @ first_EI.mT
        # Rows of M_v W_u C_u / a need the same rows of M_v only.
        second_OE = second_EJ[own] @ self.second_JJ @ second_EJ.mT
        curvature_OI = (second_OE @ first_EI) @ self.first_II
        agreement_OI = second_EJ[own] @ self.cross_IJ.mT
        # Half of ∂L/∂W_u and half of ∂L/∂W_v; the factor 2 comes in `_InClosedForm.backward`.
        gradients[0][own] += curvature_OI - agreement_OI
        gradients[1][own] += (first_OE @ second_EJ) @ self.second_JJ - first_EI[own] @ self.cross_IJ
        # The same loss could be computed from v: tr(M_u M_v) is symmetric.
        return (first_EI[own] * (curvature_OI - 2 * agreement_OI)).sum()


class MomentReplay:
    """Sum of the losses of all earlier pairs that share a modality with the pair in training."""

    def __init__(self, context: TrainingContext, pair: PairInEigenCoordinates) -> None:
        self._context, self._pair = context, pair
        self._terms: list[_OneMoves | _BothMove] | None = None

    def loss(self, group: ReplicaGroup) -> Tensor:
        """This process's share of the sum, times the number of processes: gradients are averaged."""
        # Computed with the first update that needs them, since it is a collective of all processes.
        if self._terms is None:
            self._terms = _terms(self._context, self._pair, group)
        terms, own = self._terms, group.own(len(self._pair.rotation_EE))
        if not terms:
            return self._pair.rotation_EE.new_zeros(())

        def evaluated(weights: Sides) -> tuple[Tensor, Sides]:
            # Other rows stay zero: averaging over processes puts the rows together.
            gradients = torch.zeros_like(weights[0]), torch.zeros_like(weights[1])
            parts = [term.add_to(gradients, weights, own) for term in terms]
            return sum(parts, weights[0].new_zeros(())), gradients

        # One node for autograd, whose backward returns the gradients that `evaluated` has computed.
        share: Tensor = _InClosedForm.apply(*self._pair.weights(), evaluated)
        return share * group.count


class _InClosedForm(torch.autograd.Function):
    """A loss that is computed together with half of its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        first_EI: Tensor,
        second_EJ: Tensor,
        evaluated: Callable[[Sides], tuple[Tensor, Sides]],
    ) -> Tensor:
        # Loss and gradient share M_v W_u C_u, so both are computed here, E × I each.
        loss, gradients = evaluated((first_EI, second_EJ))
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        first_EI, second_EJ = ctx.saved_tensors
        # From here autograd continues to M: through the rotation of outputs and W = VᵀW₀U + M.
        return 2 * slope * first_EI, 2 * slope * second_EJ, None


def _terms(
    context: TrainingContext, pair: PairInEigenCoordinates, group: ReplicaGroup
) -> list[_OneMoves | _BothMove]:
    rotated = _Rotated(context, pair, group)
    found = [
        rotated.term(known, moments, datasets_of(context.memory, known))
        for known, moments in touching(context.memory, context.pair)
    ]
    return [term for term in found if term is not None]


class _Rotated:
    """Moments and heads of the parent in the coordinates of the pair in training.

    Each process rotates some rows, since rotating takes longer than many updates.
    """

    def __init__(
        self, context: TrainingContext, pair: PairInEigenCoordinates, group: ReplicaGroup
    ) -> None:
        self._pair, self._weights = context.pair.modalities, context.heads.weights
        self._group = group
        heads = zip(self._pair, (pair.first, pair.second), strict=True)
        self._inputs = {name: head.space.inputs.vectors_II for name, head in heads}
        # `pair.weights()` are in the output basis of the second head, so constants must be too.
        self._outputs_EE = pair.second.space.outputs.vectors_II
        self._like_EI = pair.second.start_EI

    def term(
        self, pair: ModalityPair, moments: PairMoments, datasets: int
    ) -> _OneMoves | _BothMove | None:
        """The loss of a pair, counted once for each of its datasets.

        None if the parent's heads do not score true pairs above others: there is nothing to preserve.
        """
        first, second = pair.modalities
        parent = PairWeights(self._weights[first], self._weights[second])
        # a and b of equation (7): what both terms are at the parent's heads, where L is −1.
        size, agreement = PairScores(moments).size_and_agreement(parent)
        if size <= 0 or agreement <= 0:
            return None
        # Dividing a and b by n multiplies the loss by n: the pooled moments count as n datasets.
        size, agreement, mean = size / datasets, agreement / datasets, moments.mean
        if set(pair.modalities) == set(self._pair):
            return self._both(mean, size, agreement)
        # W_v in the output basis V of the pair in training: Vᵀ W_v. It does not move.
        partner_EI = self._outputs_EE.mT @ parent.second_EJ.double()
        partner_OI = partner_EI[self._group.own(len(partner_EI))]
        return _OneMoves(
            side=self._pair.index(first),
            inputs_II=self._rotated(mean.first.sum_II, first, first),
            partner_OE=self._like(partner_OI @ mean.second.sum_II @ partner_EI.mT / size),
            agreement_OI=self._like(
                partner_OI @ mean.cross_IJ.mT @ self._inputs[first] / agreement
            ),
        )

    def _both(self, mean: PairMoments, size: float, agreement: float) -> _BothMove:
        first, second = self._pair
        # C_u and C_v occur once each in the quadratic term: √a in both gives 1 / a.
        return _BothMove(
            first_II=self._rotated(mean.first.sum_II / size**0.5, first, first),
            second_JJ=self._rotated(mean.second.sum_II / size**0.5, second, second),
            cross_IJ=self._rotated(mean.cross_IJ / agreement, first, second),
        )

    def _rotated(self, moment_IJ: Tensor, first: str, second: str) -> Tensor:
        """U_firstᵀ · moment · U_second: a moment of inputs, or of inputs of two modalities, rotated."""
        first_II, rows = self._inputs[first], len(moment_IJ)
        # Uᵀ S U row by row: row i is u_iᵀ S U. Each process computes its rows in float64.
        own_OI = first_II[:, self._group.own(rows)].mT
        return self._group.gather(self._like(own_OI @ moment_IJ @ self._inputs[second]), rows)

    def _like(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._like_EI)
