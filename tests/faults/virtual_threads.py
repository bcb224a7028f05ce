"""The threads of one simulated process, and its event loop, in virtual time."""

import asyncio
import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

from tests.faults.virtual_time import Killed, Task, VirtualEvent, VirtualTime
from workers.serve.threads import Lock, Threads

# How often a thread loses the processor where it takes a lock, and for how many seconds.
_LOSES, _PAUSES = 0.1, (0.0, 0.0, 0.0, 0.001, 0.1)


class VirtualThreads(Threads):
    """See Threads. A thread goes on until it waits, sleeps, or takes a lock: there another one may come first."""

    def __init__(self, time: VirtualTime, chance: random.Random) -> None:
        self.time = time
        self._chance = chance
        self._tasks: list[Task] = []

    def seconds(self) -> float:
        return self.time.seconds()

    def sleep(self, seconds: float) -> None:
        self.time.sleep(seconds)

    def lock(self) -> Lock:
        return _VirtualLock(self)

    def event(self) -> threading.Event:
        return VirtualEvent(self.time)

    def thread(self, name: str, run: Callable[[], None]) -> threading.Thread:
        return _VirtualThread(self, name, run)

    def executor(self, threads: int, name: str) -> Executor:
        return VirtualExecutor(self, threads, name)

    def start(self, name: str, run: Callable[[], None]) -> Task:
        """Start a task of this process."""
        self._tasks = [task for task in self._tasks if not task.has_ended]
        self._tasks.append(self.time.start(name, run))
        return self._tasks[-1]

    def give_way(self) -> None:
        """Let other threads come first, now and then."""
        if self._chance.random() < _LOSES:
            self.time.sleep(self._chance.choice(_PAUSES))

    def kill(self) -> None:
        """End the process as a crash does."""
        for task in self._tasks:
            task.kill()


class _VirtualThread(threading.Thread):
    def __init__(self, threads: VirtualThreads, name: str, run: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._threads = threads
        self._work = run
        self._task: Task | None = None

    def start(self) -> None:
        self._task = self._threads.start(self.name, self._work)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.has_ended


class _VirtualLock:
    """What looks on between tasks passes."""

    def __init__(self, threads: VirtualThreads) -> None:
        self._threads = threads
        self._is_held = False
        self._freed = threads.event()
        self._freed.set()

    def __enter__(self) -> None:
        if self._threads.time.is_in_task:
            self._threads.give_way()
            while self._is_held:
                self._freed.clear()
                self._freed.wait()
            self._is_held = True

    def locked(self) -> bool:
        return self._is_held or not self._threads.time.is_in_task

    def __exit__(self, *_: object) -> None:
        if self._threads.time.is_in_task:
            self._is_held = False
            if not self._freed.is_set():
                self._freed.set()


class VirtualExecutor(Executor):
    """An executor of tasks."""

    def __init__(self, threads: VirtualThreads, count: int, name: str) -> None:
        self._threads = threads
        self._name = name
        self._idle = count
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, partial(function, *args, **kwargs)))
        if self._idle:
            self._idle -= 1
            self._threads.start(self._name, self._work)
        return future

    def _work(self) -> None:
        while self._waiting:
            future, call = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            # What it computes takes time.
            self._threads.give_way()
            try:
                future.set_result(call())
            except Killed:
                raise
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)
        self._idle += 1


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop that runs in a task. `failures`: what no one caught."""

    def __init__(self, threads: VirtualThreads) -> None:
        super().__init__()
        self.failures: list[str] = []
        self._threads = threads
        self._woken = threads.event()
        # What BaseEventLoop calls for input, of which there is none.
        self._selector = self
        self._default_executor = threads.executor(32, "default")
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self._threads.seconds()

    def select(self, timeout: float | None) -> list[object]:
        """Wait until a thread calls, or until the next timer is due."""
        if timeout == 0:
            self._threads.give_way()
        else:
            self._woken.wait(timeout)
        self._woken.clear()
        return []

    def _process_events(self, events: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        self._woken.set()

    def _note(self, _: object, context: dict[str, Any]) -> None:
        # Requests of a process that was killed are pending for ever.
        if "exception" in context:
            self.failures.append(
                f"{context['message']}: {context['exception']!r}, {context.get('future')}"
            )
