"""Common parts of replay methods: stored rows, samples of them, and the loss on such rows.

Shapes: N stored rows of a dataset, B drawn rows, E width of the embeddings, I and J widths of what
the two heads read.

A memory is a sample of one dataset: prepared rows of both sides, their content keys, and the
outputs W x of the heads right after training on them. Memories are stored per dataset under the
names `memory/<number>/<first modality>/<second modality>/<part>`, so a version contains all of
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from workers.methods.method import DatasetStatistics, Method, MethodState, State, TrainingContext
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.loss import symmetric_info_nce, unit
from workers.model.pair import PairInEigenCoordinates

Weights = Mapping[str, Tensor]
"""The head of each modality (E × I)."""

_PREFIX = "memory/"


@dataclass(frozen=True)
class StoredRows:
    """Rows of one earlier dataset, and the outputs of its heads right after training on it."""

    pair: ModalityPair
    rows: PairedRows
    first_outputs_NE: Tensor
    second_outputs_NE: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index_B: Tensor) -> "StoredRows":
        """Return the rows with these indices."""
        return StoredRows(
            self.pair,
            self.rows.at(index_B),
            self.first_outputs_NE[index_B],
            self.second_outputs_NE[index_B],
        )

    def to(self, device: torch.device) -> "StoredRows":
        """Return a copy on another device."""
        return StoredRows(
            self.pair,
            self.rows.to(device),
            self.first_outputs_NE.to(device),
            self.second_outputs_NE.to(device),
        )


@dataclass(frozen=True)
class ReplayMethod(Method):
    """A method that stores `memory_rows` rows of every dataset. It trains in the original
    coordinates, so stored rows need no rotation."""

    needs_all_rows = True

    memory_rows: int = 300

    def __post_init__(self) -> None:
        if self.memory_rows < 1:
            raise ValueError(f"memory_rows is {self.memory_rows}; permitted are 1 and more")

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        """Add a sample of this dataset to the stored memories."""
        sample = choose_rows(statistics.rows, self.memory_rows, context.seed)
        return with_memory(context.method_state, stored(sample, context.pair, trained.weights))


class MovingHeads:
    """The heads of all modalities during an update: two are trained, the others are the parent's.

    `before` holds the parent's heads of all modalities.
    """

    def __init__(self, context: TrainingContext, pair: PairInEigenCoordinates) -> None:
        start_EI = pair.first.start_EI
        self._modalities, self._pair = context.pair.modalities, pair
        self.before: Weights = {
            modality: weight_EI.to(start_EI)
            for modality, weight_EI in context.heads.weights.items()
        }

    def now(self) -> Weights:
        """Return the current heads, with gradient for the trained ones."""
        moving = (self._pair.first.weight_EI, self._pair.second.weight_EI)
        return {**self.before, **dict(zip(self._modalities, moving, strict=True))}


class Draws:
    """Samples of stored rows, from a generator with the same seed on all ranks.

    Each sample is drawn without replacement from one memory, which is chosen uniformly.
    """

    def __init__(self, memories: Sequence[StoredRows], batch_size: int, seed: int) -> None:
        self._memories, self._batch_size = memories, batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def state(self) -> State:
        """Return the state of the generator."""
        return {"draws": self._generator.get_state()}

    def restore(self, state: State) -> None:
        """Restore the state of the generator."""
        self._generator.set_state(state["draws"])

    def __call__(self) -> StoredRows:
        """Return the next sample. Raises ValueError if there is no memory."""
        if not self._memories:
            raise ValueError("there is no memory to draw from")
        number = int(torch.randint(len(self._memories), (), generator=self._generator))
        memory = self._memories[number]
        index_N = torch.randperm(len(memory), generator=self._generator)
        return memory.at(index_N[: self._batch_size].to(memory.first_outputs_NE.device))


def choose_rows(rows: PairedRows, most: int, seed: int) -> PairedRows:
    """Return a random sample of at most `most` rows on the CPU, determined by the seed and the
    rows."""
    order_N = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows.to(torch.device("cpu")).at(order_N[:most])


def stored(rows: PairedRows, pair: ModalityPair, weights: Weights) -> StoredRows:
    """Return rows with the outputs of these heads."""
    first_NE, second_NE = outputs(weights, pair, rows)
    return StoredRows(pair, rows, first_NE, second_NE)


def memories_in(kept: MethodState) -> list[StoredRows]:
    """Return all memories in the order in which their datasets were learned."""
    parts: dict[tuple[int, str, str], dict[str, Tensor]] = {}
    for name, tensor in kept.items():
        if name.startswith(_PREFIX):
            number, first, second, part = name.removeprefix(_PREFIX).split("/")
            parts.setdefault((int(number), first, second), {})[part] = tensor
    return [
        _restored(ModalityPair(first=first, second=second), parts[number, first, second])
        for number, first, second in sorted(parts)
    ]


def memories_for(context: TrainingContext, device: torch.device) -> list[StoredRows]:
    """Return the memories with a trained modality, on the update's device."""
    return [
        memory.to(device)
        for memory in memories_in(context.method_state)
        if set(memory.pair.modalities) & set(context.pair.modalities)
    ]


def outputs(weights: Weights, pair: ModalityPair, rows: PairedRows) -> tuple[Tensor, Tensor]:
    """Return W x of both sides (N × E each)."""
    return rows.first_NI @ weights[pair.first].mT, rows.second_NJ @ weights[pair.second].mT


def embeddings(
    weights: Weights, pair: ModalityPair, rows: PairedRows, context: TrainingContext
) -> tuple[Tensor, Tensor]:
    """Return the inputs of the loss for both sides: outputs, normalised unless the recipe disables
    that."""
    first_NE, second_NE = outputs(weights, pair, rows)
    if not context.recipe.unit_length:
        return first_NE, second_NE
    return unit(first_NE), unit(second_NE)


def loss_on(
    weights: Weights, pair: ModalityPair, rows: PairedRows, context: TrainingContext
) -> Tensor:
    """Return InfoNCE of these rows as one global batch, at the temperature of the spec."""
    both = embeddings(weights, pair, rows, context)
    return symmetric_info_nce(both, rows.positives_in(rows), context.training.temperature)


def with_memory(kept: MethodState, memory: StoredRows) -> MethodState:
    """Return the state with one more memory."""
    number = len(memories_in(kept))
    prefix = f"{_PREFIX}{number:04d}/{memory.pair.first}/{memory.pair.second}/"
    rows = memory.rows
    return {
        **kept,
        prefix + "first": rows.first_NI,
        prefix + "second": rows.second_NJ,
        prefix + "first_keys": rows.first_keys_N,
        prefix + "second_keys": rows.second_keys_N,
        prefix + "first_outputs": memory.first_outputs_NE,
        prefix + "second_outputs": memory.second_outputs_NE,
    }


def _restored(pair: ModalityPair, parts: Mapping[str, Tensor]) -> StoredRows:
    rows = PairedRows(parts["first"], parts["second"], parts["first_keys"], parts["second_keys"])
    return StoredRows(pair, rows, parts["first_outputs"], parts["second_outputs"])
