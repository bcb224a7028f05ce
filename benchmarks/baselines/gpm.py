"""Gradient projection memory: gradients without the input directions that earlier datasets used.

Shapes: E width of the embeddings, I width of what a head reads, K directions of a memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.methods.method import (
    Batch,
    DatasetStatistics,
    Method,
    MethodState,
    TrainingContext,
    UpdateRule,
)
from workers.model.heads import ModalityHeads
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.moments import SecondMoment
from workers.nullspace.subspace import eigenbasis


@dataclass(frozen=True)
class GPM(Method):
    """∇W ← ∇W − ∇W M Mᵀ, with the orthonormal memory M of a head's inputs (arXiv 2103.09762).

    After each dataset, with the inputs R (I × n) of all its rows, M grows by the leading left singular
    vectors of R̂ = R − M Mᵀ R, as few as it takes until |M Mᵀ R|² + |R̂_K|² ≥ ε |R|². Those are eigenvectors of
    R̂ R̂ᵀ, which the moment R Rᵀ gives, so that all rows count and not a sample. ε is `threshold`, and grows
    by `growth` with each dataset that the head has learned.

    The paper trains with SGD, whose step is the gradient. An optimizer that rescales entries (AdamW, the
    default of the product) takes its steps out of the permitted subspace: adam_nscl.py projects them.
    """

    threshold: float = 0.97
    growth: float = 0.003

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; permitted is above 0 to 1")
        if not self.growth >= 0:
            raise ValueError(f"growth is {self.growth}; permitted are 0 and more")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        memories = [
            (change_EI, context.method_state[_memory(modality)].to(change_EI))
            for modality, change_EI in zip(context.pair.modalities, pair.changes, strict=True)
            if _memory(modality) in context.method_state
        ]
        return _GPMRule(memories)

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        state, moments = dict(context.method_state), statistics.moments
        for modality, inputs in zip(
            context.pair.modalities, (moments.first, moments.second), strict=True
        ):
            width, learned = len(inputs.sum_II), int(state.get(_learned(modality), 0))
            memory_IK = state.get(_memory(modality), torch.zeros(width, 0, dtype=torch.float64))
            threshold = min(1.0, self.threshold + self.growth * learned)
            state[_memory(modality)] = grown(memory_IK, inputs, threshold)
            state[_learned(modality)] = torch.tensor(learned + 1)
        return state


class _GPMRule(UpdateRule):
    def __init__(self, memories: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        self._memories = memories

    def backward(self, batch: Batch) -> Tensor:
        loss = super().backward(batch)
        for change_EI, memory_IK in self._memories:
            # Heads train in the original coordinates: ∂L/∂M of the change M is ∂L/∂W.
            if change_EI.grad is not None:
                change_EI.grad -= (change_EI.grad @ memory_IK) @ memory_IK.mT
        return loss


def grown(memory_IK: Tensor, inputs: SecondMoment, threshold: float) -> Tensor:
    """The memory with as many more directions as hold a share `threshold` of these inputs' energy."""
    moment_II = inputs.sum_II
    # R̂ R̂ᵀ = (I − M Mᵀ) R Rᵀ (I − M Mᵀ).
    rest_II = torch.eye(len(moment_II)).to(moment_II) - memory_IK @ memory_IK.mT
    basis = eigenbasis(SecondMoment(inputs.count, rest_II @ moment_II @ rest_II))
    # |M Mᵀ R|² + |R̂_K|² for K = 0, 1, … I. Rounding of the sum must not ask for another direction.
    held = (memory_IK * (moment_II @ memory_IK)).sum()
    energy_I = held + torch.cat([held.new_zeros(1), basis.values_I.cumsum(0)])
    enough = energy_I >= (threshold - 1e-12) * moment_II.trace()
    new = int(enough.double().argmax()) if bool(enough.any()) else len(moment_II)
    # QR keeps the columns orthonormal to rounding, however many datasets add to them.
    grown_IK: Tensor = torch.linalg.qr(torch.cat([memory_IK, basis.vectors_II[:, :new]], dim=1)).Q
    return grown_IK


def _memory(modality: str) -> str:
    return f"gpm/{modality}/memory"


def _learned(modality: str) -> str:
    return f"gpm/{modality}/learned"
