"""CILA: Co2L with a distillation weight that adapts to the losses of earlier datasets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.co2l import Co2L
from benchmarks.baselines.replay_memory import Draws, full_batches, loss_on, memories_for
from workers.methods.method import DatasetStatistics, MethodState, TrainingContext
from workers.model.heads import ModalityHeads
from workers.model.rows import PairedRows

_CONTRAST, _DISTILLED = "cila/contrast", "cila/distillation"


@dataclass(frozen=True)
class CILA(Co2L):
    """Co2L with λ_t = max(1, κ Σ_{j<t} L_dis(j) / Σ_{j<t} L_con(j)) (arXiv 2405.18756).

    `distillation` is κ, which the paper does not specify: at 1, λ became so large on a real stream
    that both old and new datasets lost. L_con(j) and L_dis(j) are means over one pass of dataset j
    under its trained heads, not over its training, so that they depend only on stored state. A
    dataset without an earlier one to distil contributes nothing to L_dis.
    """

    distillation: float = 0.3

    def coefficient(self, context: TrainingContext) -> float:
        contrast = float(context.method_state.get(_CONTRAST, 0.0))
        distilled = float(context.method_state.get(_DISTILLED, 0.0))
        return max(1.0, self.distillation * distilled / contrast) if contrast > 0 else 1.0

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        kept = dict(super().next_state(context, trained, statistics))
        contrast, distilled = self.losses(context, trained, statistics.rows)
        kept[_CONTRAST] = kept.get(_CONTRAST, torch.zeros_like(contrast)) + contrast
        kept[_DISTILLED] = kept.get(_DISTILLED, torch.zeros_like(distilled)) + distilled
        return kept

    @torch.no_grad()
    def losses(
        self, context: TrainingContext, trained: ModalityHeads, rows: PairedRows
    ) -> tuple[Tensor, Tensor]:
        """Return L_con and L_dis of this dataset: means over the batches of one pass (float64)."""
        batches = [
            rows.at(index_B)
            for index_B in full_batches(len(rows), context.training.batch_size, context.seed)
        ]
        memories = memories_for(context, rows.first_NI.device)
        if not memories:
            losses = [loss_on(trained.weights, context.pair, batch, context) for batch in batches]
            contrast = torch.stack(losses).double().mean()
            return contrast, torch.zeros_like(contrast)
        draws = Draws(memories, context.training.batch_size, context.seed)
        objective, before = self.objective(context), context.heads.weights
        terms = [objective.terms(before, trained.weights, batch, draws()) for batch in batches]
        contrasts, distilled = zip(*terms, strict=True)
        return torch.stack(contrasts).double().mean(), torch.stack(distilled).double().mean()
