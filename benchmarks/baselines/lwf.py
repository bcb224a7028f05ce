"""Distillation without stored rows: scores of earlier heads on the new rows.

Shapes: B rows of the batch, E width of the embeddings, I width of what a head reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.co2l import relation_loss
from benchmarks.baselines.replay_memory import MovingHeads, Weights, outputs
from cmcl.contract.modality import ModalityPair
from workers.methods.method import (
    Batch,
    DatasetStatistics,
    Method,
    MethodState,
    TrainingContext,
    UpdateRule,
)
from workers.model.heads import ModalityHeads
from workers.model.loss import unit
from workers.model.pair import PairInEigenCoordinates
from workers.model.rows import PairedRows


@dataclass(frozen=True)
class LwF(Method):
    """L + λ L_dis: learning without forgetting (arXiv 1606.09282), for scores between embeddings.

    L_dis is the cross-entropy between the softmaxes of scores of the batch under the teacher's heads and now, over
    rows and over columns, at `softening` times the temperature of the loss (the paper's T = 2). Scores are those
    between the two sides, if both heads have learned before. If one has, they are those among its own rows,
    without that of a row with itself; if none has, there is nothing to distil.

    The teacher is the parent version. All ranks compute the term on the whole batch.
    """

    needs_all_rows = True

    distillation: float = 1.0
    softening: float = 2.0

    def __post_init__(self) -> None:
        if not self.distillation >= 0:
            raise ValueError(f"distillation is {self.distillation}; permitted are 0 and more")
        if not self.softening > 0:
            raise ValueError(f"softening is {self.softening}; permitted is more than 0")

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        names, learned = context.pair.modalities, context.memory.inputs_of
        known = [name for name in names if learned(name) is not None]
        if not known:
            return UpdateRule()
        heads = MovingHeads(context, pair)
        temperature = self.softening * context.training.temperature
        scores = _Scores(context.pair, (known[0], known[-1]), context.recipe.unit_length)
        teacher = {**heads.before, **self.teacher(context, heads.before)}
        return _LwFRule(self.distillation, temperature, scores, teacher, heads)

    def teacher(self, context: TrainingContext, before: Weights) -> Mapping[str, Tensor]:
        """The heads whose scores are kept, where they are not the parent's (E × I)."""
        return {}


@dataclass(frozen=True)
class ZSCL(LwF):
    """L + λ L_dis with the first model as the teacher (arXiv 2303.06628).

    There it is a pretrained model, and rows are of a reference dataset. Heads know nothing before their first
    dataset, so a modality's teacher is its head right after that, and rows are those of the new dataset. The
    average of the weights during training is the run's (`Recipe.averaged_share`).
    """

    def teacher(self, context: TrainingContext, before: Weights) -> Mapping[str, Tensor]:
        return {
            name: context.method_state[_first(name)].to(before[name])
            for name in context.pair.modalities
            if _first(name) in context.method_state
        }

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        first = {_first(name): trained.weights[name] for name in context.pair.modalities}
        return {**first, **context.method_state}


@dataclass(frozen=True)
class _Scores:
    """Scores (B × B) between two sides of a batch, or among the rows of one."""

    pair: ModalityPair
    sides: tuple[str, str]
    unit_length: bool

    def __call__(self, weights: Weights, rows: PairedRows) -> Tensor:
        both = dict(zip(self.pair.modalities, outputs(weights, self.pair, rows), strict=True))
        left_BE, right_BE = (
            unit(both[name]) if self.unit_length else both[name] for name in self.sides
        )
        scores_BB = left_BE @ right_BE.mT
        if self.sides[0] != self.sides[1]:
            return scores_BB
        # Far below all others, and finite: 0 · log 0 is 0 then, and has no gradient.
        itself_BB = torch.eye(len(scores_BB), dtype=torch.bool, device=scores_BB.device)
        return scores_BB.masked_fill(itself_BB, _NEVER)


# A score that no row has: its softmax is 0 in float32 and float64 alike.
_NEVER = -1e6


class _LwFRule(UpdateRule):
    def __init__(
        self,
        distillation: float,
        temperature: float,
        scores: _Scores,
        teacher: Weights,
        heads: MovingHeads,
    ) -> None:
        self._distillation, self._temperature = distillation, temperature
        self._scores, self._teacher, self._heads = scores, teacher, heads

    def backward(self, batch: Batch) -> Tensor:
        loss = batch.loss()
        past_BB = self._scores(self._teacher, batch.rows) / self._temperature
        now_BB = self._scores(self._heads.now(), batch.rows) / self._temperature
        distilled = relation_loss(past_BB, now_BB)
        (loss + self._distillation * distilled).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def _first(modality: str) -> str:
    return f"zscl/{modality}"
