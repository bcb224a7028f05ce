"""Replay of stored features: the loss on earlier rows, as many as moments have bytes, or all of them.

Shapes: N rows of a dataset, I and J widths of what the two heads read.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.baselines.replay_memory import (
    Draws,
    MovingHeads,
    ReplayMethod,
    StoredRows,
    choose_rows,
    loss_on,
    memories_for,
    with_memory,
)
from cmcl.contract.model import default_lift
from workers.methods.method import (
    Batch,
    DatasetStatistics,
    MethodState,
    State,
    TrainingContext,
    UpdateRule,
)
from workers.model.heads import ModalityHeads
from workers.model.pair import PairInEigenCoordinates

# Of a stored row: two numbers in float16 for each column, and its two content keys.
_NUMBER_BYTES, _KEYS_BYTES = 2, 16
# Of a number of the moments of a dataset.
_MOMENT_BYTES = 4


@dataclass(frozen=True)
class FeatureReplay(ReplayMethod):
    """L + w L(batch of stored rows): experience replay (arXiv 1902.10486) of frozen features.

    Every row of every dataset is stored, in float16: what replay reaches without a bound on what is kept. In
    each update a batch is drawn from one memory that shares a head with the pair, chosen uniformly.
    """

    memory_rows: int = 1_000_000
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; permitted are 0 and more")

    def rows_to_keep(self, rows: int, first: int, second: int) -> int:
        """How many of a dataset's rows are stored, whose sides have these widths."""
        return self.memory_rows

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        memories = memories_for(context, pair.rotation_EE.device)
        if not memories:
            return UpdateRule()
        draws = Draws(memories, context.training.batch_size, context.seed)
        return _FeatureReplayRule(self.weight, MovingHeads(context, pair), draws, context)

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        rows = statistics.rows
        most = self.rows_to_keep(len(rows), rows.first_NI.shape[1], rows.second_NJ.shape[1])
        sample = choose_rows(rows, most, context.seed)
        kept = replace(sample, first_NI=sample.first_NI.half(), second_NJ=sample.second_NJ.half())
        # Outputs of the heads that learned them are not needed.
        none_N0 = torch.zeros(len(kept), 0)
        return with_memory(context.method_state, StoredRows(context.pair, kept, none_N0, none_N0))


@dataclass(frozen=True)
class EqualBytes(FeatureReplay):
    """Stores as many rows as have the bytes of the moments that the product keeps of the dataset.

    Those are one triangle of each side's moment and the cross moment in float32, of features with their lift.
    """

    def rows_to_keep(self, rows: int, first: int, second: int) -> int:
        # Less the constant 1.
        lifted = (width + default_lift(width - 1) for width in (first, second))
        budget = moment_bytes(*lifted)
        found = budget // (_NUMBER_BYTES * (first + second) + _KEYS_BYTES)
        return max(1, min(self.memory_rows, found))


class _FeatureReplayRule(UpdateRule):
    def __init__(
        self, weight: float, heads: MovingHeads, draws: Draws, context: TrainingContext
    ) -> None:
        self._weight, self._heads, self._draws, self._context = weight, heads, draws, context

    def backward(self, batch: Batch) -> Tensor:
        loss, memory, weights = batch.loss(), self._draws(), self._heads.now()
        # From float16 to the precision of the heads.
        rows = replace(
            memory.rows,
            first_NI=memory.rows.first_NI.to(weights[memory.pair.first]),
            second_NJ=memory.rows.second_NJ.to(weights[memory.pair.second]),
        )
        replayed = loss_on(weights, memory.pair, rows, self._context)
        (loss + self._weight * replayed).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def state(self) -> State:
        return self._draws.state()

    def restore(self, state: State) -> None:
        self._draws.restore(state)


def moment_bytes(first: int, second: int) -> int:
    """Bytes of a dataset's moments: two triangles and a rectangle in float32."""
    triangles = (first * (first + 1) + second * (second + 1)) // 2
    return _MOMENT_BYTES * (triangles + first * second)
