"""Co2L: contrastive loss with memory rows as additional negatives, and relation distillation.

Shapes: B rows of the batch, R drawn memory rows, K keys of a query (B + R), E width of the
embeddings, I width of what a head reads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.replay_memory import (
    Draws,
    MovingHeads,
    ReplayMethod,
    StoredRows,
    Weights,
    embeddings,
    memories_for,
)
from cmcl.contract.modality import ModalityPair
from workers.methods.method import Batch, State, TrainingContext, UpdateRule
from workers.model.pair import PairInEigenCoordinates
from workers.model.rows import PairedRows


@dataclass(frozen=True)
class Co2L(ReplayMethod):
    """L_con + λ L_dis (arXiv 2106.14413), for pairs of modalities.

    *L_con*: InfoNCE of the batch, in which the drawn memory rows of a query's partner modality are
    additional negatives, but never queries. *L_dis*: cross-entropy between the row-softmaxes of
    similarities under the parent's heads, at `past_temperature`, and under the heads now, at
    `temperature`, both for the rows and for the columns; of the batch and of the draw, each within
    its own pair, averaged over all their rows.

    Without a memory that shares a head with the pair, only the loss remains. All ranks compute both
    terms on the whole batch, so their gradients are equal and need no reduction; a learned
    temperature keeps its initial value.
    """

    distillation: float = 1.0
    past_temperature: float = 0.01
    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.distillation >= 0:
            raise ValueError(f"distillation is {self.distillation}; permitted are 0 and more")
        if not min(self.past_temperature, self.temperature) > 0:
            raise ValueError(
                f"past_temperature is {self.past_temperature} and temperature {self.temperature}; "
                "permitted is more than 0"
            )

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        memories = memories_for(context, pair.rotation_EE.device)
        if not memories:
            return UpdateRule()
        draws = Draws(memories, context.training.batch_size, context.seed)
        heads = MovingHeads(context, pair)
        return _Co2LRule(self.coefficient(context), self.objective(context), heads, draws)

    def coefficient(self, context: TrainingContext) -> float:
        """Return λ for this dataset."""
        return self.distillation

    def objective(self, context: TrainingContext) -> "Co2LObjective":
        """Return the objective for this dataset."""
        return Co2LObjective(context, self.past_temperature, self.temperature)


class _Co2LRule(UpdateRule):
    def __init__(
        self, coefficient: float, objective: "Co2LObjective", heads: MovingHeads, draws: Draws
    ) -> None:
        self._coefficient, self._objective = coefficient, objective
        self._heads, self._draws = heads, draws

    def backward(self, batch: Batch) -> Tensor:
        contrast, distilled = self._objective.terms(
            self._heads.before, self._heads.now(), batch.rows, self._draws()
        )
        (contrast + self._coefficient * distilled).backward()  # type: ignore[no-untyped-call]
        return contrast.detach()

    def state(self) -> State:
        return self._draws.state()

    def restore(self, state: State) -> None:
        self._draws.restore(state)


@dataclass(frozen=True)
class Co2LObjective:
    """The two terms as functions of the parent's heads and the current heads."""

    context: TrainingContext
    past_temperature: float
    temperature: float

    def terms(
        self, before: Weights, now: Weights, batch: PairedRows, memory: StoredRows
    ) -> tuple[Tensor, Tensor]:
        """Return (L_con, L_dis)."""
        of_batch = self._relations(before, now, self.context.pair, batch)
        of_memory = self._relations(before, now, memory.pair, memory.rows)
        rows = len(batch) + len(memory)
        distilled = (len(batch) * of_batch + len(memory) * of_memory) / rows
        return self._contrast(now, batch, memory), distilled

    def _contrast(self, now: Weights, batch: PairedRows, memory: StoredRows) -> Tensor:
        first_BE, second_BE = embeddings(now, self.context.pair, batch, self.context)
        positive_BB, temperature = batch.positives_in(batch), self.context.training.temperature
        against_second = self._negatives(now, self.context.pair.second, memory)
        against_first = self._negatives(now, self.context.pair.first, memory)
        second_same_BR = _same(positive_BB, batch.second_keys_N, against_second[1])
        first_same_BR = _same(positive_BB, batch.first_keys_N, against_first[1])
        forward = asymmetric_info_nce(
            (first_BE, second_BE, against_second[0]), positive_BB, second_same_BR, temperature
        )
        backward = asymmetric_info_nce(
            (second_BE, first_BE, against_first[0]), positive_BB, first_same_BR, temperature
        )
        return (forward + backward) / 2

    def _negatives(self, now: Weights, modality: str, memory: StoredRows) -> tuple[Tensor, Tensor]:
        """Return embeddings and keys of the memory's side of this modality; no rows if it has
        none."""
        first_RE, second_RE = embeddings(now, memory.pair, memory.rows, self.context)
        if modality == memory.pair.first:
            return first_RE, memory.rows.first_keys_N
        if modality == memory.pair.second:
            return second_RE, memory.rows.second_keys_N
        return first_RE[:0], memory.rows.first_keys_N[:0]

    def _relations(
        self, before: Weights, now: Weights, pair: ModalityPair, rows: PairedRows
    ) -> Tensor:
        past_BB = _scores(embeddings(before, pair, rows, self.context)) / self.past_temperature
        now_BB = _scores(embeddings(now, pair, rows, self.context)) / self.temperature
        return relation_loss(past_BB, now_BB)


def asymmetric_info_nce(
    embedded: tuple[Tensor, Tensor, Tensor],
    positive_BB: Tensor,
    same_BR: Tensor,
    temperature: float,
) -> Tensor:
    """Return the mean over queries of −log p(positive | query), with R additional negatives.

    `embedded` are queries (B × E), keys (B × E) and negatives (R × E). `same_BR` masks negatives
    that are the same item as a positive of the query; they are excluded.
    """
    queries_BE, keys_BE, negatives_RE = embedded
    against_BR = (queries_BE @ negatives_RE.mT).masked_fill(same_BR, -torch.inf)
    scores_BK = torch.cat([queries_BE @ keys_BE.mT, against_BR], dim=1) / temperature
    log_share_BB = scores_BK.log_softmax(dim=1)[:, : len(keys_BE)]
    target_BB = positive_BB / positive_BB.sum(dim=1, keepdim=True)
    return -(log_share_BB * target_BB).sum(dim=1).mean()


def relation_loss(past_BB: Tensor, now_BB: Tensor) -> Tensor:
    """Return the mean cross-entropy of the row and column softmaxes of scores / temperature."""
    return (_cross_entropy(past_BB, now_BB) + _cross_entropy(past_BB.mT, now_BB.mT)) / 2


def _cross_entropy(past_BB: Tensor, now_BB: Tensor) -> Tensor:
    return -(past_BB.softmax(dim=1) * now_BB.log_softmax(dim=1)).sum(dim=1).mean()


def _scores(embedded: tuple[Tensor, Tensor]) -> Tensor:
    return embedded[0] @ embedded[1].mT


def _same(positive_BB: Tensor, keys_B: Tensor, memory_keys_R: Tensor) -> Tensor:
    """Return which memory rows are the same item as a positive of each batch row (bool, B × R)."""
    equal_BR = keys_B[:, None] == memory_keys_R
    return (positive_BB.float() @ equal_BR.float()) > 0
