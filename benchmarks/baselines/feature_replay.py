"""Replay of stored features: the loss on earlier rows, as many as moments have bytes, or all of them.

A memory is a sample of one dataset: prepared rows of both sides in float16, and their content keys. Memories
are stored per dataset under the names `memory/<number>/<first modality>/<second modality>/<part>`, so a
version contains all of them.

Shapes: N rows of a dataset, B drawn rows, I and J widths of what the two heads read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import default_lift
from workers.methods.method import (
    Batch,
    DatasetStatistics,
    Method,
    MethodState,
    State,
    TrainingContext,
    UpdateRule,
)
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.loss import symmetric_info_nce, unit
from workers.model.pair import PairInEigenCoordinates

_PREFIX = "memory/"
# Of a stored row: two numbers in float16 for each column, and its two content keys.
_NUMBER_BYTES, _KEYS_BYTES = 2, 16
# Of a number of the moments of a dataset.
_MOMENT_BYTES = 4


@dataclass(frozen=True)
class StoredRows:
    """Rows of one earlier dataset."""

    pair: ModalityPair
    rows: PairedRows


@dataclass(frozen=True)
class FeatureReplay(Method):
    """L + w L(batch of stored rows): experience replay (arXiv 1902.10486) of frozen features.

    Every row of every dataset is stored: what replay reaches without a bound on what is kept. In each update
    a batch is drawn from one memory that shares a head with the pair, chosen uniformly. It trains in the
    original coordinates, so stored rows need no rotation.
    """

    needs_all_rows = True

    memory_rows: int = 1_000_000
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.memory_rows < 1:
            raise ValueError(f"memory_rows is {self.memory_rows}; permitted are 1 and more")
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; permitted are 0 and more")

    def rows_to_keep(self, rows: int, first: int, second: int) -> int:
        """How many of a dataset's rows are stored, whose sides have these widths."""
        return self.memory_rows

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        """Memories without a trained modality would have a constant loss."""
        memories = [
            memory
            for memory in memories_in(context.method_state)
            if set(memory.pair.modalities) & set(context.pair.modalities)
        ]
        return _ReplayRule(self.weight, pair, memories, context) if memories else UpdateRule()

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        """Add a random sample of this dataset, determined by the seed and the rows."""
        rows = statistics.rows
        most = self.rows_to_keep(len(rows), rows.first_NI.shape[1], rows.second_NJ.shape[1])
        order_N = torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed))
        kept = rows.to(torch.device("cpu")).at(order_N[:most])
        number = len(memories_in(context.method_state))
        prefix = f"{_PREFIX}{number:04d}/{context.pair.first}/{context.pair.second}/"
        return {
            **context.method_state,
            prefix + "first": kept.first_NI.half(),
            prefix + "second": kept.second_NJ.half(),
            prefix + "first_keys": kept.first_keys_N,
            prefix + "second_keys": kept.second_keys_N,
        }


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


class _ReplayRule(UpdateRule):
    """Draws are without replacement, from a generator with the same seed on all ranks."""

    def __init__(
        self,
        weight: float,
        pair: PairInEigenCoordinates,
        memories: Sequence[StoredRows],
        context: TrainingContext,
    ) -> None:
        self._weight, self._pair, self._context = weight, pair, context
        start_EI = pair.first.start_EI
        self._memories = [
            StoredRows(
                memory.pair,
                replace(
                    memory.rows.to(start_EI.device),
                    first_NI=memory.rows.first_NI.to(start_EI),
                    second_NJ=memory.rows.second_NJ.to(start_EI),
                ),
            )
            for memory in memories
        ]
        # The parent's heads, of which two are trained.
        self._before = {name: weight.to(start_EI) for name, weight in context.heads.weights.items()}
        self._generator = torch.Generator().manual_seed(context.seed)

    def backward(self, batch: Batch) -> Tensor:
        loss, memory = batch.loss(), self.draw()
        (loss + self._weight * self._loss_on(memory)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def draw(self) -> StoredRows:
        """The rows of an update."""
        number = int(torch.randint(len(self._memories), (), generator=self._generator))
        memory = self._memories[number]
        order_N = torch.randperm(len(memory.rows), generator=self._generator)
        index_B = order_N[: self._context.training.batch_size]
        return StoredRows(memory.pair, memory.rows.at(index_B.to(memory.rows.first_NI.device)))

    def _loss_on(self, memory: StoredRows) -> Tensor:
        """InfoNCE of these rows as one global batch, at the temperature of the spec."""
        moving = (self._pair.first.weight_EI, self._pair.second.weight_EI)
        weights = {**self._before, **dict(zip(self._context.pair.modalities, moving, strict=True))}
        both = (
            memory.rows.first_NI @ weights[memory.pair.first].mT,
            memory.rows.second_NJ @ weights[memory.pair.second].mT,
        )
        if self._context.recipe.unit_length:
            both = unit(both[0]), unit(both[1])
        positives = memory.rows.positives_in(memory.rows)
        return symmetric_info_nce(both, positives, self._context.training.temperature)

    def state(self) -> State:
        return {"draws": self._generator.get_state()}

    def restore(self, state: State) -> None:
        self._generator.set_state(state["draws"])


def memories_in(kept: MethodState) -> list[StoredRows]:
    """Return all memories in the order in which their datasets were learned."""
    parts: dict[tuple[int, str, str], dict[str, Tensor]] = {}
    for name, tensor in kept.items():
        if name.startswith(_PREFIX):
            number, first, second, part = name.removeprefix(_PREFIX).split("/")
            parts.setdefault((int(number), first, second), {})[part] = tensor
    return [
        StoredRows(ModalityPair(first=first, second=second), _rows_of(parts[number, first, second]))
        for number, first, second in sorted(parts)
    ]


def _rows_of(parts: Mapping[str, Tensor]) -> PairedRows:
    return PairedRows(parts["first"], parts["second"], parts["first_keys"], parts["second_keys"])


def moment_bytes(first: int, second: int) -> int:
    """Bytes of a dataset's moments: two triangles and a rectangle in float32."""
    triangles = (first * (first + 1) + second * (second + 1)) // 2
    return _MOMENT_BYTES * (triangles + first * second)
