"""Moment replay: earlier datasets go on teaching through their moments, without their rows.

Shapes: E width of the embeddings, I and J widths of what two heads read.

For linear heads, second moments are sufficient statistics of the spectral contrastive loss
(arXiv 2106.04156). For a pair of modalities with mean moments C_u, C_v and cross moment X,

    L(G) = tr(C_u G C_v Gᵀ) / a − 2 tr(Gᵀ X) / b,   G = W_uᵀ W_v,

with a and b such that L = −1 at the parent's heads. With M = W C Wᵀ its gradient is closed:

    ∂L/∂W_u = 2 M_v W_u C_u / a − 2 W_v Xᵀ / b       (and alike for v)

so no graph is built. Moments are pooled by pair of modalities: the cost of an update does not grow
with the number of datasets. Everything is in the coordinates of the pair in training: inputs of
its heads rotated by U, outputs in those of its second head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.contract.modality import ModalityPair
from workers.methods.port import Lesson
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.certificate import PairWeights
from workers.nullspace.moments import PairMoments
from workers.nullspace.replay import size_and_agreement

Gradients = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _OneMoves:
    """A pair of which one side is in training: M_v and W_v Xᵀ stay as they are."""

    side: int
    inputs_II: Tensor
    partner_EE: Tensor
    agreement_EI: Tensor

    def add_to(self, gradients: Gradients, weights: Gradients) -> None:
        curvature_EI = self.partner_EE @ (weights[self.side] @ self.inputs_II)
        gradients[self.side].add_(curvature_EI - self.agreement_EI)


@dataclass(frozen=True)
class _BothMove:
    """The very pair in training, seen before."""

    first_II: Tensor
    second_JJ: Tensor
    cross_IJ: Tensor
    """Divided by b, the other two by √a each."""

    def add_to(self, gradients: Gradients, weights: Gradients) -> None:
        first_EI, second_EJ = weights
        first_through_EI, second_through_EJ = first_EI @ self.first_II, second_EJ @ self.second_JJ
        second_EE, first_EE = second_through_EJ @ second_EJ.mT, first_through_EI @ first_EI.mT
        gradients[0].add_(second_EE @ first_through_EI - second_EJ @ self.cross_IJ.mT)
        gradients[1].add_(first_EE @ second_through_EJ - first_EI @ self.cross_IJ)


class MomentReplay:
    """The summed loss of all earlier pairs that share a modality with the pair in training."""

    def __init__(self, lesson: Lesson, pair: PairInEigenCoordinates) -> None:
        turned = _Turned(lesson, pair)
        self._terms: list[_OneMoves | _BothMove] = []
        for known, moments in lesson.memory.touching(lesson.pair):
            term = turned.term(known, moments, lesson.memory.datasets_of(known))
            if term is not None:
                self._terms.append(term)

    @torch.no_grad()
    def add_gradient(self, pair: PairInEigenCoordinates, weight: float) -> None:
        """Add `weight` times the gradient of the summed loss to that of the pair's parameters."""
        weights = pair.weights()
        gradients = (torch.zeros_like(weights[0]), torch.zeros_like(weights[1]))
        for term in self._terms:
            term.add_to(gradients, weights)
        pair.add_gradients(2 * weight * gradients[0], 2 * weight * gradients[1])


class _Turned:
    """Moments and heads of the parent in the coordinates of the pair in training."""

    def __init__(self, lesson: Lesson, pair: PairInEigenCoordinates) -> None:
        self._pair, self._weights = lesson.pair.modalities, lesson.heads.weights
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
        inputs_II = self._inputs[first]
        return _OneMoves(
            side=self._pair.index(first),
            inputs_II=self._like(inputs_II.mT @ mean.first.sum_II @ inputs_II),
            partner_EE=self._like(partner_EI @ mean.second.sum_II @ partner_EI.mT / size),
            agreement_EI=self._like(partner_EI @ mean.cross_IJ.mT @ inputs_II / agreement),
        )

    def _both(self, mean: PairMoments, size: float, agreement: float) -> _BothMove:
        first_II, second_JJ = (self._inputs[name] for name in self._pair)
        return _BothMove(
            first_II=self._like(first_II.mT @ mean.first.sum_II @ first_II / size**0.5),
            second_JJ=self._like(second_JJ.mT @ mean.second.sum_II @ second_JJ / size**0.5),
            cross_IJ=self._like(first_II.mT @ mean.cross_IJ @ second_JJ / agreement),
        )

    def _like(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._like_EI)
