"""The published dual-sided projection (arXiv 2503.14963), for comparison: its arithmetic as it is.

Shapes: E width of the embeddings, F width of the conditioned feature, I = F + 1 width of what a
head reads (the last column is the bias).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from workers.methods.method import Batch, Method, TrainingContext, UpdateRule
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.model.pair import HeadInEigenCoordinates, PairInEigenCoordinates
from workers.nullspace.moments import SecondMoment
from workers.nullspace.subspace import eigenbasis

# The published code cuts outputs at 0, in float32. Below this share of the largest eigenvalue float64
# has nothing but rounding, and counting it would make the result depend on the machine.
_ZERO = 1e-12


@dataclass(frozen=True)
class Paper(Method):
    """Replace ∇W by ∇W − P_out ∇W P_in, then let AdamW rescale it and decay W towards 0.

    P_in projects on the eigenvectors of the mean feature moment of the head's earlier datasets
    with an eigenvalue above `input_threshold`, P_out on those of the mean moment of their
    partners' embeddings with one above `output_threshold`. Both are absolute, as published; there
    they are 0.1 and 0. At 0, P_out is full wherever the embeddings are. 0.1 suits features with
    norms of 10 and more: here they have unit length, the trace of their mean moment is 1, and 0.1
    would find almost no direction. The bias column is neither projected nor part of the moments, nor
    decayed. AdamW comes after the projection and rotates its result out of the permitted subspace:
    an elementwise rescaling in the original coordinates does not commute with P. That, the free bias
    and the decay are why this method forgets what workers/methods/nullspace.py keeps.

    It deviates from the published code on purpose where that takes the wrong inputs:
    - statistics are of the pair that is trained (published: of stored positions 0 and 1);
    - means are over the rows of each modality (published: one counter for all modalities);
    - partners' embeddings are those under today's heads (published: under the heads that had just
      learned them, which are outdated once the partner is trained again);
    - an eigenvalue that is rounding of zero is zero;
    - AdamW's ε is the service's 1e-6 (published: 1e-8).
    Loss, rate and batches are the service's: no warm-down of the rate, no clipping of gradients.
    With SGD, the decay of W towards 0 does not pass through the momentum.
    """

    input_threshold: float = 0.01
    output_threshold: float = 0.0

    def __post_init__(self) -> None:
        if not min(self.input_threshold, self.output_threshold) >= 0:
            raise ValueError(
                f"input_threshold is {self.input_threshold} and output_threshold "
                f"{self.output_threshold}; permitted are 0 and more"
            )

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        heads = [
            _ProjectedHead(head, self._spans(context, modality, head))
            for modality, head in zip(
                context.pair.modalities, (pair.first, pair.second), strict=True
            )
        ]
        return _PaperRule(heads, context.training.learning_rate * context.training.weight_decay)

    def _spans(
        self, context: TrainingContext, modality: str, head: HeadInEigenCoordinates
    ) -> tuple[Tensor, Tensor] | None:
        """Orthonormal bases (E × K, F × K) of what P_out and P_in project on; None before the first
        dataset."""
        # Mean moments over all rows of the head's earlier datasets, and of their partners' embeddings.
        learned = context.memory.inputs_of(modality)
        partners = _partners(context.memory, context.heads, modality)
        if learned is None or partners is None:
            return None
        outputs_EK = span_above(partners, self.output_threshold)
        inputs_FK = span_above(_without_bias(learned), self.input_threshold)
        return outputs_EK.to(head.start_EI), inputs_FK.to(head.start_EI)


class _PaperRule(UpdateRule):
    """Project gradients before the optimizer's step, and decay the heads after it."""

    def __init__(self, heads: "Sequence[_ProjectedHead]", decay: float) -> None:
        self._heads, self._decay = heads, decay

    def backward(self, batch: Batch) -> Tensor:
        loss = super().backward(batch)
        for head in self._heads:
            head.before_update()
        return loss

    def after_update(self) -> None:
        for head in self._heads:
            head.after_update(self._decay)


class _ProjectedHead:
    """One head and the spans to project its gradient on; None projects nothing.

    The head trains M in W = W₀ + M: the update spaces of this method are everything, in the original
    coordinates, so ∂L/∂M = ∂L/∂W.
    """

    def __init__(self, head: HeadInEigenCoordinates, spans: tuple[Tensor, Tensor] | None) -> None:
        self._change_EI: nn.Parameter = head.change_EI
        self._start_EF, self._spans = head.start_EI[:, :-1], spans
        self._bias_E = self._change_EI[:, -1].detach().clone()

    @torch.no_grad()
    def before_update(self) -> None:
        """∇W − P_out ∇W P_in, with P = U Uᵀ, for all columns but the bias."""
        # The bias before the optimizer's step, which decays it along with everything else.
        self._bias_E.copy_(self._change_EI[:, -1])
        if self._change_EI.grad is not None and self._spans is not None:
            outputs_EK, inputs_FK = self._spans
            gradient_EF = self._change_EI.grad[:, :-1]
            # P_out ∇W P_in = U_o (U_oᵀ ∇W U_i) U_iᵀ: two thin products instead of two square ones.
            gradient_EF -= outputs_EK @ (outputs_EK.mT @ gradient_EF @ inputs_FK) @ inputs_FK.mT

    @torch.no_grad()
    def after_update(self, decay: float) -> None:
        """Decay W₀ too, and undo the decay of the bias."""
        # The optimizer decayed the change, M ← (1 − d) M. W ← (1 − d) W needs −d W₀ in addition.
        self._change_EI[:, :-1] -= decay * self._start_EF
        self._change_EI[:, -1] += decay * self._bias_E


def span_above(moment: SecondMoment, threshold: float) -> Tensor:
    """Eigenvectors of the mean moment with eigenvalues above an absolute threshold (I × K)."""
    # Eigenvalues of the mean are those of the sum over the count; eigenvectors are the same.
    basis = eigenbasis(moment)
    values_I = basis.values_I / max(moment.count, 1)
    least = max(threshold, _ZERO * float(values_I.max()))
    return basis.vectors_II[:, values_I > least]


def _partners(memory: Memory, heads: ModalityHeads, modality: str) -> SecondMoment | None:
    """Summed moment of the partners' embeddings W x, without bias, under today's heads."""
    # z = W x without the bias column: the published statistics have none either.
    moments = [
        _without_bias(moment).through(heads.weights[partner][:, :-1])
        for (first, second), both in memory.by_pair.items()
        for own, partner, moment in ((first, second, both.second), (second, first, both.first))
        if own == modality
    ]
    return reduce(add, moments) if moments else None


def _without_bias(moment: SecondMoment) -> SecondMoment:
    return SecondMoment(moment.count, moment.sum_II[:-1, :-1])
