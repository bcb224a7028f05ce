"""The port for methods: how earlier datasets shape the training of the next one.

Shapes: B rows of the global batch, N rows of the dataset, E width of the embeddings, I and J widths
of what the two heads read.

The loop (workers/train/loop.py) asks a method four questions, in this order:
`update_spaces` (where may the heads move), `update_rule` (what one update does), the rule's
`backward` and `after_update` for every batch, and `keep` (what the next dataset must know).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.model.pair import PairInEigenCoordinates
from workers.model.rows import PairedRows
from workers.nullspace.mask import UpdateSpace, everything_free
from workers.nullspace.moments import PairMoments

# What a method keeps from dataset to dataset beside the moments, by name; part of the version.
Kept = Mapping[str, Tensor]


@dataclass(frozen=True)
class Lesson:
    """What is known before a dataset is trained: what the parent version knows, and the task."""

    heads: ModalityHeads
    memory: Memory
    kept: Kept
    pair: ModalityPair
    training: TrainingSpec
    seed: int


@dataclass(frozen=True)
class Peers:
    """The processes that share the work of an update; alone there is one, and nothing travels.

    `own`: from the number of rows that all of them have to the part that is this one's. `gather`:
    rows of that part (L × anything) and the number of all rows to all of them, in their order. All
    processes must gather alike.
    """

    count: int = 1
    own: Callable[[int], slice] = slice
    gather: Callable[[Tensor, int], Tensor] = lambda rows_LX, _: rows_LX


@dataclass(frozen=True)
class Batch:
    """One global batch.

    `loss` runs the pair on this batch and answers InfoNCE; under DDP it is this rank's share times
    the number of ranks, so that the average over ranks is the loss. It may be called more than
    once. `peers` are for terms that a method divides in the same way.
    """

    loss: Callable[[], Tensor]
    everywhere: PairedRows | None = None
    peers: Peers = Peers()

    @property
    def rows(self) -> PairedRows:
        """The *whole* batch on every rank, in the input coordinates of the update spaces, for
        methods with `holds_rows`: a term that is computed from it is alike on all ranks and is
        simply added."""
        if self.everywhere is None:
            raise RuntimeError("only a method that says holds_rows can ask for whole batches")
        return self.everywhere


@dataclass(frozen=True)
class Seen:
    """What was learned: the moments of all rows, and for methods with `holds_rows` the rows."""

    moments: PairMoments
    held: PairedRows | None = None

    @property
    def rows(self) -> PairedRows:
        """All rows of the dataset, prepared, in the original coordinates."""
        if self.held is None:
            raise RuntimeError("only a method that says holds_rows can ask for all rows")
        return self.held


State = Mapping[str, Tensor]


class UpdateRule:
    """What one update does. The default is the loss alone."""

    def backward(self, batch: Batch) -> Tensor:
        """Leave the gradient for the optimizer in the parameters; answer the loss of the batch."""
        loss = batch.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def after_update(self) -> None:
        """The optimizer has moved the parameters."""

    def state(self) -> State:
        """What a run that goes on from here must know, such as how far a generator has come."""
        return {}

    def restore(self, state: State) -> None:
        """Go on from there."""


class Method:
    """How earlier datasets shape the training of the next one. The default: not at all."""

    # Whether it needs all rows of a dataset in memory: then it cannot learn one that is streamed.
    holds_rows = False

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:  # noqa: ARG003
        """The method of a model; by default nothing of its spec is needed."""
        return cls()

    def update_spaces(self, lesson: Lesson) -> Mapping[str, UpdateSpace]:
        """The space of each of the pair's two modalities."""
        return {
            modality: everything_free(*lesson.heads.weights[modality].shape)
            for modality in lesson.pair.modalities
        }

    def update_rule(self, lesson: Lesson, pair: PairInEigenCoordinates) -> UpdateRule:
        """A rule for one dataset."""
        return UpdateRule()

    def keep(self, lesson: Lesson, trained: ModalityHeads, seen: Seen) -> Kept:
        """All that is to be kept from now on, what was kept before included."""
        return lesson.kept
