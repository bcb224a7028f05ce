"""Measured updates: the product's loop in real processes, connected by gloo."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling.constants import Points
from benchmarks.scaling.group import seconds_together
from benchmarks.training.loops import Clock, ProductLoop, held, learned_before, random_sides
from benchmarks.training.timing import WindowTimer
from cmcl.contract.dataset import Shard
from workers.train.data.dataset import StreamedRows
from workers.train.data.rows import LocalBatch, Plan, TrainingRows
from workers.train.distributed import SINGLE_PROCESS, world
from workers.train.learn import ModelState

_READ_BATCHES = (64, 256, 1024)
_TINY = 8
# Bytes of float16, both sides.
_ROW_BYTES = 4


@dataclass(frozen=True)
class Workload:
    """A training of a model with protected directions. `shards`: for streamed rows. `folder`: files
    shared by all processes."""

    width: int
    batch: int
    updates: int
    folder: Path
    shards: tuple[Shard, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Streamed bytes per row."""
        return _ROW_BYTES * self.width if self.shards else 0

    @property
    def model_state(self) -> Path:
        """File of the model's state, which depends only on the width."""
        return self.folder / f"model_state-{self.width}.pt"

    def rows(self) -> TrainingRows:
        """Return as many rows as the updates need."""
        if self.shards:
            return StreamedRows(self.shards, (self.width - 1, self.width - 1))
        return held(random_sides(self.batch * self.updates, self.width - 1, seed=3))


def prepare(workload: Workload) -> None:
    """Write the model's state once for all processes."""
    if not workload.model_state.exists():
        torch.save(learned_before(workload.width), workload.model_state)


def time_updates(workload: Workload, windows: WindowTimer | None = None) -> dict[str, Any]:
    """Time the second half of a training, which includes averaging, continuing `windows`. Return
    timing and the share of free entries."""
    known: ModelState = torch.load(workload.model_state, weights_only=False)
    windows = windows or WindowTimer(world().size)
    loop = ProductLoop(known, workload.rows(), workload.batch)
    learned = loop.run(Clock(windows, begin=0.5))
    windows.pause()
    free = [float(space.free_EI.double().mean()) for space in learned.spaces.values()]
    return {**windows.timing().document(), "free_share": sum(free) / len(free)}


def tiny(folder: Path) -> Workload:
    """Return a workload of almost no data, which measures the interpreter's time."""
    return Workload(_TINY, _TINY, 2000, folder)


def reading_alone(workload: Workload) -> Points:
    """Return seconds by bytes of one batch of streamed rows, without training."""
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
