"""Comparison of all loops on the same features, alternating in one process."""

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from benchmarks.training.loops import (
    AutogradLoop,
    BareLoop,
    Clock,
    ProductLoop,
    batches,
    held,
    learned_before,
    random_sides,
)
from benchmarks.training.published_loop import PublishedLoop
from benchmarks.training.reading import as_users_do, readers, write_shards
from benchmarks.training.timing import Timing, WindowTimer
from workers.files.shards import write_shard
from workers.train.dataset import RowsOnDisk
from workers.train.learn import ModelState

TimedTask = Callable[[WindowTimer], None]

# Updates per round of Trainer's loop, which is by far the slowest.
_PUBLISHED_UPDATES = 32
# Reads per round; the first one loads the files into the page cache.
_READINGS = 9


@dataclass(frozen=True)
class Comparison:
    """A comparison with heads of `width` on both sides, `rows` rows and `rounds` rounds."""

    width: int
    rows: int
    rounds: int

    def loops(self, batch: int, threads: int) -> dict[str, Timing]:
        """Return the seconds of one update of each loop."""
        torch.set_num_threads(threads)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cmcl-bench-")))
            return self._alternate({**self._peers(batch, folder), **self._ours(batch, folder)})

    def reading(self, shards: int) -> dict[str, Timing]:
        """Return the seconds to read `shards` shards of `rows` rows once, with the product's reader
        and with pyarrow's, for users' files, which are read in place, and for the product's own."""
        torch.set_num_threads(os.cpu_count() or 1)
        with tempfile.TemporaryDirectory(prefix="cmcl-bench-") as name:
            tasks: dict[str, TimedTask] = {}
            for kind, write in (("users' files", as_users_do), ("own shards", write_shard)):
                folder = Path(name) / write.__name__
                folder.mkdir()
                written = write_shards(folder, shards, self.rows, self.width, write)
                for reader, read in readers(written).items():
                    tasks[f"{reader}, {kind}"] = _each_is_one(read)
            return self._alternate(tasks)

    def _alternate(self, tasks: Mapping[str, TimedTask]) -> dict[str, Timing]:
        """Time all of them alternately. The first unit of work of each round is warm-up."""
        windows = {name: WindowTimer() for name in tasks}
        for _ in range(self.rounds):
            for name, task in tasks.items():
                task(windows[name])
                windows[name].pause()
        return {name: found.timing() for name, found in windows.items()}

    def _peers(self, batch: int, folder: Path) -> dict[str, TimedTask]:
        """Return the peers. Their features have one more number, because the product appends the
        constant 1."""
        sides = random_sides(self.rows, self.width, seed=0)
        published = PublishedLoop(sides, self.width, batch, folder)

        def bare(loop: AutogradLoop) -> TimedTask:
            def run(windows: WindowTimer) -> None:
                for index_B in batches(self.rows, batch, self.rows // batch, seed=1):
                    loop.update(index_B)
                    windows.tick()

            return run

        return {
            "bare": bare(BareLoop(sides, self.width)),
            "autograd": bare(AutogradLoop(sides, self.width)),
            "published": lambda windows: published.run(windows, _PUBLISHED_UPDATES),
        }

    def _ours(self, batch: int, folder: Path) -> dict[str, TimedTask]:
        known, width = _known(self.width), self.width - 1
        rows = held(random_sides(self.rows, width, seed=0))
        streamed = RowsOnDisk(write_shards(folder, 1, self.rows, width), (width, width))
        loops = {
            "preserve": ProductLoop(known, rows, batch),
            "preserve, streamed": ProductLoop(known, streamed, batch),
            "preserve, bfloat16": ProductLoop(known, rows, batch, "bfloat16"),
        }
        return {name: _our(loop) for name, loop in loops.items()}


@cache
def _known(width: int) -> ModelState:
    """Cache the state, because learning it takes longer than most measurements."""
    return learned_before(width)


def _our(loop: ProductLoop) -> TimedTask:
    def run(windows: WindowTimer) -> None:
        loop.run(Clock(windows))

    return run


def _each_is_one(read: Callable[[], int]) -> TimedTask:
    def run(windows: WindowTimer) -> None:
        for _ in range(_READINGS):
            read()
            windows.tick()

    return run
