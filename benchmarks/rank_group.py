"""Groups of processes on this machine that run the same task concurrently, connected by gloo."""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

T = TypeVar("T")

_TIMEOUT = timedelta(seconds=300)
# The last collective of a training that diverged may still be running.
_THREAD_SECONDS = 30.0


def in_group(task: Callable[[], T], size: int) -> list[T]:
    """Return the result of `task`, which must be picklable, in each of `size` single-threaded processes.

    A group of one has no process group, like a job on one rank.
    """
    with tempfile.TemporaryDirectory(prefix="cmcl-group-") as folder:
        spawn(_one, args=(task, size, folder), nprocs=size)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _one(rank: int, task: Callable[[], Any], size: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
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
