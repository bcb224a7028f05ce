"""The published dual-sided projection (arXiv 2503.14963) as it is meant, for comparison.

Shapes: E width of the embeddings, I width of what a head reads, K directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.methods.method import Method, TrainingContext, UpdateRule
from workers.model.pair import HeadInEigenCoordinates, PairInEigenCoordinates
from workers.nullspace.moments import SecondMoment
from workers.nullspace.subspace import eigenbasis

# Below this share of the largest eigenvalue float64 has nothing but rounding, and counting it would make
# the result depend on the machine.
_ZERO = 1e-12


@dataclass(frozen=True)
class Paper(Method):
    """Replace each step ΔW of the optimizer by ΔW − P_out ΔW P_in.

    P_in projects on the eigenvectors of the mean feature moment of the head's earlier datasets with an
    eigenvalue above `input_threshold`, P_out on those of the mean moment of their partners' embeddings
    with one above `output_threshold`. Both are absolute, as published: the text has 0.01 for features as
    their encoders made them, which protects next to nothing at unit length. 0.001 does (docs/log.md).

    While one head of an earlier pair moves, scores of features and embeddings in these spans stay as they
    are. The published code loses that (decision 36). To keep it, here
    - the step is projected, and not the gradient that AdamW makes a step of: an elementwise rescaling
      does not commute with P;
    - the bias is a column of W, projected with the others: features have a constant 1;
    - the decay acts on the change of W, which stays in the permitted subspace, and not on W;
    - P_out has a threshold: at 0 it is full, and P_in alone decides;
    - moments are of the pair that is trained, their means over the rows of each modality, and those of
      embeddings under today's heads.
    Unlike `preserve` it blocks a rectangle of leading inputs and outputs, trains in the original
    coordinates, and leaves the second-order term of a pair that comes again.
    """

    input_threshold: float = 0.001
    output_threshold: float = 0.001

    def __post_init__(self) -> None:
        if not min(self.input_threshold, self.output_threshold) >= 0:
            raise ValueError(
                f"input_threshold is {self.input_threshold} and output_threshold "
                f"{self.output_threshold}; permitted are 0 and more"
            )

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        heads = zip(context.pair.modalities, (pair.first, pair.second), strict=True)
        blocks = [self._block(context, modality, head) for modality, head in heads]
        return _ProjectedSteps([block for block in blocks if block is not None])

    def _block(
        self, context: TrainingContext, modality: str, head: HeadInEigenCoordinates
    ) -> "_Block | None":
        """What of a head must not change; None before its first dataset."""
        learned = context.memory.inputs_of(modality)
        partners = context.memory.partners_of(modality, context.heads)
        if learned is None or partners is None:
            return None
        # P_out = V Vᵀ (E × E) and P_in = U Uᵀ (I × I) are kept as their thin factors.
        outputs_EK = span_above(partners, self.output_threshold)
        inputs_IK = span_above(learned, self.input_threshold)
        return _Block(head.change_EI, outputs_EK.to(head.start_EI), inputs_IK.to(head.start_EI))


@dataclass(frozen=True)
class _Block:
    """One head's trained change, and the spans of its earlier outputs (E × K) and inputs (I × K)."""

    change_EI: Tensor
    outputs_EK: Tensor
    inputs_IK: Tensor

    def remove(self) -> None:
        """ΔW ← ΔW − V (Vᵀ ΔW U) Uᵀ: two thin products instead of two square ones.

        ΔW is the sum of all steps so far. Earlier steps are projected, so this projects the last one. The
        update spaces of this method are everything, in the original coordinates, so the change is ΔW.
        """
        change_EI, outputs_EK, inputs_IK = self.change_EI, self.outputs_EK, self.inputs_IK
        change_EI -= outputs_EK @ (outputs_EK.mT @ change_EI @ inputs_IK) @ inputs_IK.mT


class _ProjectedSteps(UpdateRule):
    def __init__(self, blocks: Sequence[_Block]) -> None:
        self._blocks = blocks

    @torch.no_grad()
    def after_update(self, learning_rate: float) -> None:
        for block in self._blocks:
            block.remove()


def span_above(moment: SecondMoment, threshold: float) -> Tensor:
    """Eigenvectors of the mean moment with eigenvalues above an absolute threshold (I × K)."""
    # Eigenvalues of the mean are those of the sum over the count; eigenvectors are the same.
    basis = eigenbasis(moment)
    values_I = basis.values_I / max(moment.count, 1)
    # At a threshold of 0 the second bound decides: directions of rounding do not count.
    least = max(threshold, _ZERO * float(values_I.max()))
    return basis.vectors_II[:, values_I > least]
