"""Processes on this machine that are connected by gloo."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

_TIMEOUT = timedelta(seconds=300)
# The last collective of a training that diverged may still be running.
_THREAD_SECONDS = 30.0


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
