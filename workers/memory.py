"""Memory that a process has freed and the system does not have yet."""

import ctypes
import threading
import time

import pyarrow as pa


def release_memory() -> None:
    """Return freed memory to the system.

    glibc keeps memory that was freed between blocks in use: 240 MiB in a rank after the example stream, 200 MiB
    in a replica after a burst of large requests.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc only
        trim(0)


def release_memory_every(seconds: float) -> None:
    """Start a daemon thread that calls `release_memory` with this pause, while the process lives."""

    def repeat() -> None:
        while True:
            time.sleep(seconds)
            release_memory()

    threading.Thread(target=repeat, name="release-memory", daemon=True).start()
