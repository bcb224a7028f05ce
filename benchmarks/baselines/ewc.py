"""Online elastic weight consolidation: important entries are pulled back to their old values.

Shapes: E width of the embeddings, I width of what a head reads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.baselines.replay_memory import full_batches, loss_on
from workers.methods.method import (
    Batch,
    DatasetStatistics,
    Method,
    MethodState,
    TrainingContext,
    UpdateRule,
)
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.pair import PairInEigenCoordinates


@dataclass(frozen=True)
class EWC(Method):
    """L + λ Σ F (W − W*)², then F ← γ F + mean over batches of (∂L/∂W)².

    Online EWC (arXiv 1805.06370, after 1612.00796) with the Fisher information of each head from
    one pass over its dataset at the trained weights. W* are the weights after the modality's last
    dataset, where training starts: W − W* is the change M.

    λ = `strength` · B / 2 for batches of B rows. A batch's gradient is a mean of B, so its square
    underestimates the Fisher information of a row by that factor, and the Laplace approximation
    of an equally large dataset has the ½: strength 1 is the formula's own scale. At that scale it
    forgets nearly as much as the loss alone; 100 was the best of 1, 10, 30, 100, 300 and 1000 on a
    real stream.
    """

    needs_all_rows = True

    strength: float = 100.0
    decay: float = 0.95

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength is {self.strength}; permitted are 0 and more")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay}; permitted are 0 to 1")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        importances = [
            (change_EI, context.method_state[_name(modality)].to(change_EI))
            for modality, change_EI in zip(context.pair.modalities, pair.changes, strict=True)
            if _name(modality) in context.method_state
        ]
        return _EWCRule(self.strength * context.training.batch_size / 2, importances)

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        kept = dict(context.method_state)
        for modality, new_EI in fisher(context, trained, statistics.rows).items():
            old_EI = kept.get(_name(modality))
            kept[_name(modality)] = new_EI if old_EI is None else self.decay * old_EI + new_EI
        return kept


class _EWCRule(UpdateRule):
    def __init__(self, strength: float, importances: list[tuple[nn.Parameter, Tensor]]) -> None:
        self._strength, self._importances = strength, importances

    def backward(self, batch: Batch) -> Tensor:
        loss = batch.loss()
        penalty = sum(
            ((fisher_EI * change_EI.square()).sum() for change_EI, fisher_EI in self._importances),
            loss.new_zeros(()),
        )
        (loss + self._strength * penalty).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def fisher(context: TrainingContext, trained: ModalityHeads, rows: PairedRows) -> dict[str, Tensor]:
    """Return the mean of the squared batch gradients over one pass (E × I for each modality)."""
    leaves = {
        modality: trained.weights[modality].clone().requires_grad_()
        for modality in context.pair.modalities
    }
    total = {modality: torch.zeros_like(leaf_EI) for modality, leaf_EI in leaves.items()}
    batches = list(full_batches(len(rows), context.training.batch_size, context.seed))
    for index_B in batches:
        loss = loss_on(leaves, context.pair, rows.at(index_B), context)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for modality, gradient_EI in zip(leaves, gradients, strict=True):
            total[modality] += gradient_EI.square() / len(batches)
    return total


def _name(modality: str) -> str:
    return f"ewc/{modality}/fisher"
