"""The environment of one training run: ranks, device, observer and checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmcl.contract.job import Phase
from workers.methods.method import Recipe
from workers.train.distributed import SINGLE_PROCESS, World

Tensors = Mapping[str, Tensor]


def part_of(tensors: Tensors, part: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `part/`, by the rest of their names."""
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


@dataclass(frozen=True)
class UpdateStats:
    """Statistics of an update on one rank. `drift` is None if there are no earlier scores."""

    gradient_norm: float
    removed_share: float
    drift: float | None


@dataclass(frozen=True)
class UpdateDone:
    """An update that was made. `local_loss` is this rank's share of the global loss."""

    done: int
    total: int
    local_loss: Tensor
    stats: UpdateStats | None = None


class Watcher:
    """Observer of a training run. The default does nothing."""

    def enter(self, phase: Phase) -> None:
        """Called when a phase begins."""

    def rows_read(self, done: int, total: int) -> None:
        """Called when this rank has read `done` of its `total` rows in the current phase."""

    def resumed(self, updates: int) -> None:
        """Called before the first update of a run that continues after `updates` updates."""

    def should_log(self) -> bool:
        """Whether to compute `UpdateStats` of the next update, which takes some time."""
        return False

    def update_done(self, update: UpdateDone) -> None:
        """Called after every update."""


class Checkpoints:
    """Where a run saves its state. The default saves nothing.

    State is equal on all ranks, so that only rank 0 has to write it.
    """

    def newest(self, here: World) -> Tensors | None:
        """The state to continue from, the same on all ranks. None: start from the beginning."""
        return None

    def set_start(self, start: Tensors) -> None:
        """Set the part of the state that does not change during training."""

    def save_if_due(self, updates: int, state: Callable[[], Tensors]) -> None:
        """Called after every update; saves the state if a checkpoint is due."""


@dataclass(frozen=True)
class Run:
    """One process of a training run."""

    here: World = SINGLE_PROCESS
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watcher: Watcher = field(default_factory=Watcher)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    recipe: Recipe = field(default_factory=Recipe)
