"""Groups of processes on this machine that do the same at the same time, joined by gloo."""

import gc
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.training.calm import WINDOW_SECONDS, Windows

T = TypeVar("T")

_TIMEOUT = timedelta(seconds=300)
# Calm ones, of each constant; for so long they are waited for.
_WINDOWS, _PATIENCE_SECONDS = 3, 3.0
# glibc's largest threshold for blocks of their own is 32 MiB.
_ONCE_LET_GO = 31 << 20
_MARGIN, _CLOCK = 1.2, 1e-7


def in_group(task: Callable[[], T], size: int) -> list[T]:
    """What each of `size` processes of one thread answers; `task` must be picklable.

    A group of one has no process group, as a job on one rank has none.
    """
    with tempfile.TemporaryDirectory(prefix="cmcl-group-") as folder:
        spawn(_one, args=(task, size, folder), nprocs=size)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _one(rank: int, task: Callable[[], Any], size: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # Whoever has let go of so much keeps what it lets go of later, as a rank that has read its rows.
    # Else each pass over some MiB is paid for in page faults, which an update has none of.
    torch.empty(_ONCE_LET_GO, dtype=torch.uint8)
    with joined(Path(folder) / "rendezvous", rank, size) if size > 1 else nullcontext():
        torch.save(task(), Path(folder) / f"{rank}.pt")


@contextmanager
def joined(meeting: Path, rank: int, size: int, timeout: timedelta = _TIMEOUT) -> Iterator[None]:
    """One of `size` processes that meet at a file and are joined by gloo.

    In the end gloo's threads are gone, or it raises: one that lets go of its last work while Python
    ends would abort the process (docs/log.md).
    """
    # Imported later, it would hold the group to the end of the process: by its default arguments.
    import torch.distributed.nn  # noqa: F401

    dist.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=rank, world_size=size, timeout=timeout
    )
    yield
    # DDP and what hangs on it is a circle.
    gc.collect()
    dist.destroy_process_group()
    names = [(thread / "comm").read_text() for thread in Path("/proc/self/task").iterdir()]
    if any("gloo" in name for name in names):
        raise RuntimeError(f"something still holds the process group: {' '.join(names)}")


def seconds_together(task: Callable[[], object]) -> float:
    """Median seconds of `task` while all processes of the group do it at once."""
    return seconds_by_turns([task])[0]


def seconds_by_turns(tasks: Sequence[Callable[[], object]]) -> list[float]:
    """The same of each of several tasks, window by window in turn: the machine's own pace changes within
    minutes, and what is compared or added up should have met the same."""
    counts = [_of_a_window(task) for task in tasks]
    windows = [Windows(_size(), _WINDOWS) for _ in tasks]
    until = time.perf_counter() + _PATIENCE_SECONDS * len(tasks)
    while _not_all(all(one.is_enough for one in windows) or time.perf_counter() > until):
        for task, count, window in zip(tasks, counts, windows, strict=True):
            window.tick()
            for _ in range(count):
                task()
                window.tick()
            window.pause()
    return [one.timing().median for one in windows]


def seconds_in_a_ring(tasks: Sequence[Callable[[], object]]) -> list[float]:
    """The same, but each is done once and then the next: what lies in the caches is what others left
    there, as in an update. Alone in a loop a pass over a head takes a quarter less (docs/log.md)."""
    for task in tasks:
        task()
    rings, laps = Windows(_size()), [_Laps(len(tasks))]
    until = time.perf_counter() + _PATIENCE_SECONDS * len(tasks)
    rings.tick()
    while _not_all(rings.is_enough or time.perf_counter() > until):
        laps[-1].run(tasks)
        rings.tick()
        if len(rings.all) == len(laps):
            laps.append(_Laps(len(tasks)))
    of_one = [laps[number].of_one for number in rings.chosen()]
    return [median(each) for each in zip(*of_one, strict=True)]


class _Laps:
    """Rings of one window."""

    def __init__(self, tasks: int) -> None:
        self._seconds, self._count = [0.0] * tasks, 0

    def run(self, tasks: Sequence[Callable[[], object]]) -> None:
        """Another ring."""
        self._count += 1
        for number, task in enumerate(tasks):
            began = time.perf_counter()
            task()
            self._seconds[number] += time.perf_counter() - began

    @property
    def of_one(self) -> list[float]:
        """Seconds of each task, once."""
        return [seconds / self._count for seconds in self._seconds]


def _of_a_window(task: Callable[[], object]) -> int:
    """How often it is done in a window; alike in all processes, for it may be a collective."""
    task()
    began = time.perf_counter()
    task()
    seconds = time.perf_counter() - began
    count = torch.tensor(math.ceil(_MARGIN * WINDOW_SECONDS / max(seconds, _CLOCK)))
    if _size() > 1:
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
    return int(count)


def _not_all(mine: bool) -> bool:
    """False once every process is content; waits for all of them."""
    content = torch.tensor(int(mine))
    if _size() > 1:
        dist.all_reduce(content, op=dist.ReduceOp.MIN)
    return not content


def _size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
