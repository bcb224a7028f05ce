"""Threads, locks and the clock of a replica, behind one interface: tests/faults simulates them, and so orders them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol


class Lock(AbstractContextManager[object], Protocol):
    """What is used of `threading.Lock`."""

    def locked(self) -> bool: ...


class Threads:
    """Those of the operating system."""

    def seconds(self) -> float:
        """The time of a clock that only grows."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def lock(self) -> Lock:
        return threading.Lock()

    def event(self) -> threading.Event:
        return threading.Event()

    def thread(self, name: str, run: Callable[[], None]) -> threading.Thread:
        """Return a thread that does not keep the process alive; the caller starts it."""
        return threading.Thread(target=run, name=name, daemon=True)

    def executor(self, threads: int, name: str) -> Executor:
        """Return an executor whose threads all run already: later, the system may be out of threads."""
        executor = ThreadPoolExecutor(threads, name)
        # Each task needs a thread of its own, as it ends only when all have begun.
        all_started = threading.Barrier(threads)
        for _ in range(threads):
            executor.submit(all_started.wait)
        return executor


SYSTEM = Threads()
