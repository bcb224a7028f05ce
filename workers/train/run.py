"""What learning a dataset is surrounded by: its peers, its device, who watches, where checkpoints go."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmcl.contract.job import Phase
from workers.train.distributed import ALONE, World

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
class Sight:
    """What an update looked like, to one rank. `drift`: None where nothing was learned before."""

    gradient_norm: float
    removed_share: float
    drift: float | None


@dataclass(frozen=True)
class UpdateDone:
    """Told after each update. `local_loss` is this rank's share of the global loss."""

    done: int
    total: int
    local_loss: Tensor
    sight: Sight | None = None


class Watcher:
    """Told how far learning has come; the default tells nobody."""

    def enter(self, phase: Phase) -> None:
        """The next phase begins."""

    def rows_read(self, done: int, total: int) -> None:
        """Of the present phase, by this rank."""

    def resumed(self, updates: int) -> None:
        """A checkpoint spared so many updates."""

    def is_curious(self) -> bool:
        """Whether the next update should be looked at, which costs some time."""
        return False

    def update_done(self, update: UpdateDone) -> None:
        """After every update."""


class Checkpoints:
    """Where a run leaves what it would need to go on; the default leaves nothing.

    Everything that is left is alike on all ranks, so that the leading one alone has to write.
    """

    def newest(self, here: World) -> Tensors | None:
        """The state to go on from, the same on all ranks; None: begin."""
        return None

    def begin(self, start: Tensors) -> None:
        """What stays as it is while the run trains; part of every state that is left."""

    def offer(self, updates: int, state: Callable[[], Tensors]) -> None:
        """After every update: the state may be taken, or not."""


@dataclass(frozen=True)
class Run:
    """One process that learns a dataset, perhaps among others."""

    here: World = ALONE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watcher: Watcher = field(default_factory=Watcher)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
