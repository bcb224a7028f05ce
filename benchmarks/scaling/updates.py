"""Updates as they are: the product's own loop in real processes, joined by gloo as on a cluster."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling.constants import Points
from benchmarks.scaling.group import seconds_together
from benchmarks.training.calm import Windows
from benchmarks.training.ours import Clock, OurLoop, held, learned_before, random_sides
from cmcl.contract.dataset import Shard
from workers.train.data.order import Plan
from workers.train.data.rows import LocalBatch, TrainingRows
from workers.train.data.streamed import StreamedRows
from workers.train.distributed import SINGLE_PROCESS, world
from workers.train.learn import ModelState

_READ_BATCHES = (64, 256, 1024)
_TINY = 8
# Of float16, both sides.
_ROW_BYTES = 4


@dataclass(frozen=True)
class Workload:
    """How a model that has something to protect is asked to learn; `shards` are there for rows that
    are streamed. `folder` has what all processes need."""

    width: int
    batch: int
    updates: int
    folder: Path
    shards: tuple[Shard, ...] = ()

    @property
    def row_bytes(self) -> int:
        """That are streamed of each row."""
        return _ROW_BYTES * self.width if self.shards else 0

    @property
    def model_state(self) -> Path:
        """Where what the model knows lies; of the width alone."""
        return self.folder / f"model_state-{self.width}.pt"

    def rows(self) -> TrainingRows:
        """As many as the updates need."""
        if self.shards:
            return StreamedRows(self.shards, (self.width - 1, self.width - 1))
        return held(random_sides(self.batch * self.updates, self.width - 1, seed=3))


def prepare(workload: Workload) -> None:
    """Learn what comes before, once for all processes."""
    if not workload.model_state.exists():
        torch.save(learned_before(workload.width), workload.model_state)


def time_updates(workload: Workload, windows: Windows | None = None) -> dict[str, Any]:
    """Of the second half of a training, in which all iterates are averaged, too, and of what `windows` had
    before; and which share of the entries was free."""
    known: ModelState = torch.load(workload.model_state, weights_only=False)
    windows = windows or Windows(world().size)
    loop = OurLoop(known, workload.rows(), workload.batch, "mask")
    learned = loop.run(Clock(windows, begin=0.5))
    windows.pause()
    free = [float(space.free_EI.double().mean()) for space in learned.spaces.values()]
    return {**windows.timing().document(), "free_share": sum(free) / len(free)}


def tiny(folder: Path) -> Workload:
    """An update of next to no numbers: what is left is the interpreter's time."""
    return Workload(_TINY, _TINY, 2000, folder)


def reading_alone(workload: Workload) -> Points:
    """Seconds of one batch of streamed rows that nobody trains on, by its bytes."""
    rows = StreamedRows(workload.shards, (workload.width - 1, workload.width - 1))
    return {
        float(batch * workload.row_bytes): seconds_together(_next_of(rows, batch))
        for batch in _READ_BATCHES
    }


def _next_of(rows: StreamedRows, batch: int) -> Callable[[], LocalBatch]:
    batches: Iterator[LocalBatch] = (
        found
        for seed in cycle(range(1000))
        for found in rows.batches(Plan(batch, 1, seed), SINGLE_PROCESS, lambda raw: raw)
    )
    return lambda: next(batches)
