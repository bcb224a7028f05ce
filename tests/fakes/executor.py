"""Threads of a replica whose time a test advances."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from typing import Any

from workers.serve.threads import Threads


class EndingThreads(Threads):
    """Threads of the system that `end` when they wait or sleep; with the test's clock, if it has one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended = threading.Event()
        self._events: list[threading.Event] = []
        self._started: list[threading.Thread] = []

    def seconds(self) -> float:
        return self._clock()

    def thread(self, name: str, run: Callable[[], None]) -> threading.Thread:
        def run_until_the_end() -> None:
            with suppress(SystemExit):
                run()

        self._started.append(super().thread(name, run_until_the_end))
        return self._started[-1]

    def sleep(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise SystemExit

    def event(self) -> threading.Event:
        self._events.append(_EndingEvent(self._ended))
        return self._events[-1]

    def end(self) -> None:
        """End the threads, and wait for them."""
        self._ended.set()
        for thread in self._started:
            while thread.is_alive():
                # Again: a thread may have cleared one since.
                for event in self._events:
                    event.set()
                thread.join(0.01)


class _EndingEvent(threading.Event):
    def __init__(self, ended: threading.Event) -> None:
        super().__init__()
        self._ended = ended

    def wait(self, timeout: float | None = None) -> bool:
        is_set = super().wait(timeout)
        self._check()
        return is_set

    def clear(self) -> None:
        # A loop that is woken again and again does not wait.
        self._check()
        super().clear()

    def _check(self) -> None:
        if self._ended.is_set() and threading.current_thread() is not threading.main_thread():
            raise SystemExit


class InlineThreads(EndingThreads):
    """What is submitted runs in the thread of the test, when it calls `run_all`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._submitted = deque[Callable[[], object]]()

    def executor(self, threads: int, name: str) -> Executor:
        return _InlineExecutor(self._submitted)

    def run_all(self) -> None:
        """Run what was submitted, and what that submits."""
        while self._submitted:
            self._submitted.popleft()()


class _InlineExecutor(Executor):
    def __init__(self, submitted: deque[Callable[[], object]]) -> None:
        self._submitted = submitted

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._submitted.append(partial(function, *args, **kwargs))
        return Future()
