"""Groups of processes on this machine that run the same task concurrently, connected by gloo."""

import gc
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.training.timing import WINDOW_SECONDS, WindowTimer

T = TypeVar("T")

_TIMEOUT = timedelta(seconds=300)
# Calm windows of each constant, and the longest time to wait for them.
_WINDOWS, _TIMEOUT_SECONDS = 3, 3.0
# Just below glibc's largest mmap threshold, 32 MiB.
_ONCE_LET_GO = 31 << 20
_MARGIN, _CLOCK = 1.2, 1e-7
# The last collective of a training that diverged may still be running.
_THREAD_SECONDS = 30.0


def in_group(task: Callable[[], T], size: int) -> list[T]:
    """Return the result of `task` in each of `size` single-threaded processes; `task` must be
    picklable.

        A group of one has no process group, like a job on one rank.
    """
    with tempfile.TemporaryDirectory(prefix="cmcl-group-") as folder:
        spawn(_one, args=(task, size, folder), nprocs=size)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _one(rank: int, task: Callable[[], Any], size: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # After freeing such a block, glibc keeps freed memory, as in a rank that has read its rows.
    # Otherwise each pass over some MiB would cause page faults, which an update does not have.
    torch.empty(_ONCE_LET_GO, dtype=torch.uint8)
    with joined(Path(folder) / "rendezvous", rank, size) if size > 1 else nullcontext():
        torch.save(task(), Path(folder) / f"{rank}.pt")


@contextmanager
def joined(meeting: Path, rank: int, size: int, timeout: timedelta = _TIMEOUT) -> Iterator[None]:
    """Connect one of `size` processes by gloo, with a rendezvous file.

    At the end gloo's threads must have ended, otherwise it raises: a thread that releases its
    last work during interpreter shutdown would abort the process (docs/log.md).
    """
    # Imported after the group is created, its default arguments would reference the group until the
    # process exits.
    import torch.distributed.nn  # noqa: F401

    dist.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=rank, world_size=size, timeout=timeout
    )
    yield
    # DDP and its hooks form a reference cycle.
    gc.collect()
    dist.destroy_process_group()
    until = time.monotonic() + _THREAD_SECONDS
    while gloo := [name for name in _thread_names() if "gloo" in name]:
        if time.monotonic() > until:
            raise RuntimeError(f"the process group is still referenced: {' '.join(gloo)}")
        time.sleep(0.01)


def _thread_names() -> Iterator[str]:
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            yield (thread / "comm").read_text().strip()


def seconds_together(task: Callable[[], object]) -> float:
    """Return the median seconds of `task` while all processes of the group run it concurrently."""
    return seconds_alternating([task])[0]


def seconds_alternating(tasks: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each task in all processes, alternating between windows, because
    the machine's speed varies within minutes."""
    counts = [_of_a_window(task) for task in tasks]
    windows = [WindowTimer(_size(), _WINDOWS) for _ in tasks]
    until = time.perf_counter() + _TIMEOUT_SECONDS * len(tasks)
    while _not_all(all(one.is_enough for one in windows) or time.perf_counter() > until):
        for task, count, window in zip(tasks, counts, windows, strict=True):
            window.tick()
            for _ in range(count):
                task()
                window.tick()
            window.pause()
    return [one.timing().median for one in windows]


def seconds_in_cycle(tasks: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each task, run in a cycle, so that caches are as in an update.
    Alone in a loop a pass over a head takes a quarter less (docs/log.md)."""
    for task in tasks:
        task()
    cycles, times = WindowTimer(_size()), [_Cycles(len(tasks))]
    until = time.perf_counter() + _TIMEOUT_SECONDS * len(tasks)
    cycles.tick()
    while _not_all(cycles.is_enough or time.perf_counter() > until):
        times[-1].run(tasks)
        cycles.tick()
        if len(cycles.all) == len(times):
            times.append(_Cycles(len(tasks)))
    of_one = [times[number].of_one for number in cycles.chosen()]
    return [median(each) for each in zip(*of_one, strict=True)]


class _Cycles:
    """Cycles of one window."""

    def __init__(self, tasks: int) -> None:
        self._seconds, self._count = [0.0] * tasks, 0

    def run(self, tasks: Sequence[Callable[[], object]]) -> None:
        """Run another cycle."""
        self._count += 1
        for number, task in enumerate(tasks):
            began = time.perf_counter()
            task()
            self._seconds[number] += time.perf_counter() - began

    @property
    def of_one(self) -> list[float]:
        """Return the seconds of one run of each task."""
        return [seconds / self._count for seconds in self._seconds]


def _of_a_window(task: Callable[[], object]) -> int:
    """Return the repetitions in a window, equal in all processes because the task may be a
    collective."""
    task()
    began = time.perf_counter()
    task()
    seconds = time.perf_counter() - began
    count = torch.tensor(math.ceil(_MARGIN * WINDOW_SECONDS / max(seconds, _CLOCK)))
    if _size() > 1:
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
    return int(count)


def _not_all(mine: bool) -> bool:
    """Return whether any process needs to continue. A collective operation."""
    content = torch.tensor(int(mine))
    if _size() > 1:
        dist.all_reduce(content, op=dist.ReduceOp.MIN)
    return not content


def _size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
