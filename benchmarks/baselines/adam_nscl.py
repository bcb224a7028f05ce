"""Adam-NSCL: steps of AdamW within the null space of what a head has read.

Shapes: E width of the embeddings, I width of what a head reads, K directions of the null space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.methods.method import Method, TrainingContext, UpdateRule
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.subspace import eigenbasis


@dataclass(frozen=True)
class AdamNSCL(Method):
    """ΔW ← ΔW U Uᵀ for each step ΔW of the optimizer (arXiv 2103.07113).

    U spans the approximate null space of the uncentred moment of all that the head has read: the eigenvectors
    with the smallest eigenvalues, as many as hold at most a `share` of the trace. Scores of rows outside of it
    stay, whatever the partner's embeddings are: it is one-sided, and blocks more than two sides do.

    The paper takes eigenvalues up to a · λ_min, with a from 10 to 50, and shows their share R in layers of its
    networks: up to 0.023. Features with dead columns have a λ_min of 0, so here the share is given; half of
    the trace is the constant 1, and 0.1 learned more than 0.02 (docs/log.md).

    The published code divides U Uᵀ by its Frobenius norm, so that steps become shorter as the null space grows
    (issue 4 of ShipengWang/Adam-NSCL). A factor of all steps is a learning rate; it is left out.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share is {self.share}; permitted are 0 to below 1")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        spaces = []
        for modality, change_EI in zip(context.pair.modalities, pair.changes, strict=True):
            inputs = context.memory.inputs_of(modality)
            if inputs is not None:
                null_IK = eigenbasis(inputs).trailing(1 - self.share)
                spaces.append((change_EI, null_IK.to(change_EI)))
        return _NullSpaceSteps(spaces)


class _NullSpaceSteps(UpdateRule):
    def __init__(self, spaces: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        self._spaces = spaces

    @torch.no_grad()
    def after_update(self, learning_rate: float) -> None:
        # The change is the sum of all steps. Earlier ones lie in the null space, where U Uᵀ is the identity,
        # so this projects the last one.
        for change_EI, null_IK in self._spaces:
            change_EI.copy_((change_EI @ null_IK) @ null_IK.mT)
