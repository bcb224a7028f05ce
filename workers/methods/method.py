"""The interface of a method: how earlier datasets shape the training of the next one.

Shapes: B rows of the global batch, N rows of the dataset, L rows of this process, E width of the
embeddings, I and J widths of what the two heads read.

workers/train/learn.py calls a method in this order, and its loop (loop.py) the update rule:

    start            where the heads of new modalities start, or what they are without an update
    update_spaces    where the heads may move
    update_rule      what one update does: `backward` and `after_update`, for every batch
    finish           which heads the version gets in place of the trained ones
    next_state       what the next dataset needs besides the moments

or, if it `solves`, only

    choose           ridges and the number of significant directions, by the two halves of the new dataset
    solve            heads from moments, without an update on rows
    next_state       as above

`Vanilla` is the smallest method: the defaults of the interface.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.memory import Memory
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.mask import UpdateSpace, everything_free
from workers.nullspace.moments import PairMoments
from workers.nullspace.two_folds import Choice

# State of a method that outlives a dataset, by name. Stored with the version, beside the moments.
MethodState = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What the loop does beyond the specification. Constants of the product; papers that are compared have their own.

    `weight_decay`: of the change of the heads, not of the heads; AdamW's default in PyTorch. `averaged_share`: the
    heads are the mean over this last share of the updates, which generalises better than the last iterate
    (`TailAverage`). `unit_length`: InfoNCE sees embeddings as they are served, at unit length.
    """

    weight_decay: float = 1e-2
    averaged_share: float = 0.5
    unit_length: bool = True


@dataclass(frozen=True)
class TrainingContext:
    """Everything that exists before a dataset is trained: the parent version and the task."""

    heads: ModalityHeads
    memory: Memory
    method_state: MethodState
    pair: ModalityPair
    training: TrainingSpec
    seed: int
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True)
class ReplicaGroup:
    """The processes that share the work of an update. Alone there is one, and nothing is sent.

    `own`: from a number of rows to the slice of this process. `gather`: rows of that slice (L × any)
    and the number of all rows, to all rows in order (N × any). It is a collective: every process
    must call it with the same number of rows.
    """

    count: int = 1
    own: Callable[[int], slice] = slice
    gather: Callable[[Tensor, int], Tensor] = lambda rows_LX, _: rows_LX


@dataclass(frozen=True)
class Batch:
    """One global batch.

    `loss` runs the pair on this batch and returns InfoNCE. Under DDP it is this rank's share times
    the number of ranks, so that the average over ranks is the loss. It may be called more than
    once. `group` is for terms that a method divides in the same way.
    """

    loss: Callable[[], Tensor]
    everywhere: PairedRows | None = None
    group: ReplicaGroup = ReplicaGroup()

    @property
    def rows(self) -> PairedRows:
        """The *whole* batch on every rank, in the input coordinates of the update spaces.

        Available to methods with `needs_all_rows`. A term that is computed from it is equal on all
        ranks and can simply be added.
        """
        if self.everywhere is None:
            raise RuntimeError("whole batches are available only to methods with needs_all_rows")
        return self.everywhere


@dataclass(frozen=True)
class DatasetStatistics:
    """A dataset after training: the moments of all rows and, with `needs_all_rows`, the rows."""

    moments: PairMoments
    held: PairedRows | None = None

    @property
    def rows(self) -> PairedRows:
        """All rows of the dataset, prepared, in the original coordinates."""
        if self.held is None:
            raise RuntimeError("all rows are available only to methods with needs_all_rows")
        return self.held


@dataclass(frozen=True)
class Solved:
    """Heads that were computed from moments: `weights` (E × I, float32) of all modalities so far.

    `final_loss`, `updates` and `temperature`: of their polish on sampled rows. `directions`: how many of
    those solved for are real. `groups`: of modalities that datasets connect.
    """

    weights: Mapping[str, Tensor]
    final_loss: float
    updates: int
    temperature: float
    directions: int
    groups: tuple[tuple[str, ...], ...]


State = Mapping[str, Tensor]


class UpdateRule:
    """What one update does. The default is the loss alone."""

    def backward(self, batch: Batch) -> Tensor:
        """Leave the gradient in the parameters and return the loss of the batch."""
        loss = batch.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def after_update(self, learning_rate: float) -> None:
        """Called when the optimizer has moved the parameters, at this rate."""

    def state(self) -> State:
        """State for a checkpoint, such as that of a random generator."""
        return {}

    def restore(self, state: State) -> None:
        """Continue from a checkpoint."""


class Method:
    """How earlier datasets shape the training of the next one. The default: not at all."""

    # True if all rows of a dataset must be in memory. Such a method cannot train a streamed dataset.
    needs_all_rows = False
    # True if heads are computed from moments (`solve`), and no update reads a row.
    solves = False

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:  # noqa: ARG003
        """Create the method of a model. The default needs nothing of the spec."""
        return cls()

    def choose(self, pair: ModalityPair, halves: tuple[PairMoments, PairMoments]) -> Choice:
        """Choose ridges and count significant directions by the moments of the dataset's halves. For methods with `solves`.

        Called on rank 0.
        """
        raise NotImplementedError(f"{type(self).__name__} trains on rows")

    def solve(self, context: TrainingContext, memory: Memory) -> Solved:
        """Compute the heads of all modalities from moments. For methods with `solves`.

        `memory`: all datasets, the new one included; `context` is of the parent. Called on rank 0.
        """
        raise NotImplementedError(f"{type(self).__name__} trains on rows")

    def start(
        self, context: TrainingContext, halves: tuple[PairMoments, PairMoments]
    ) -> "Mapping[str, Tensor] | Solved":
        """Return weights (E × I) to start from in place of those of `context`, by modality, or solved heads, which are
        not trained.

        `halves`: moments of the two halves of the new dataset. Called on rank 0.
        """
        return {}

    def update_spaces(self, context: TrainingContext) -> Mapping[str, UpdateSpace]:
        """Return the update space of each of the pair's two modalities."""
        return {
            modality: everything_free(*context.heads.weights[modality].shape)
            for modality in context.pair.modalities
        }

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        """Return the rule for one dataset."""
        return UpdateRule()

    def finish(self, context: TrainingContext, trained: ModalityHeads) -> Mapping[str, Tensor]:
        """Return weights (E × I) that the version gets in place of the trained ones, by modality."""
        return {}

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        """Return the complete state for the next dataset, what is carried over included."""
        return context.method_state


class Vanilla(Method):
    """No protection: the loss alone, in the original coordinates. What the others are compared to."""
