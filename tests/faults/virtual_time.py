"""Virtual time: threads that run one at a time, so that code that blocks is simulated unchanged.

A task is a greenlet that runs until it sleeps or waits. Then time jumps to the next event, whose task
continues. So an hour takes as long as the work in it, and a run is the same each time: nothing depends on the system's
scheduler or clock. Tasks must wait by this module alone, and hold no other lock while they wait.
"""

import asyncio
import heapq
import itertools
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from greenlet import getcurrent, greenlet

BEGAN = datetime(2026, 11, 29, tzinfo=UTC)


class Killed(BaseException):
    """Ends a task. Not an Exception: no code may catch it and continue."""


class Task:
    """A thread in virtual time. `before_pause` is called whenever it is about to sleep or wait."""

    def __init__(
        self,
        owner: "VirtualTime",
        name: str,
        work: Callable[[], None],
        before_pause: Callable[[], None],
    ) -> None:
        self.name = name
        self._before_pause = before_pause
        self.has_ended = False
        self._time = owner
        self._is_killed = False
        # Number of pauses that have ended: what was to end an earlier one is obsolete.
        self.pauses = 0
        self._work = work
        self._greenlet = greenlet(self._run)

    def kill(self) -> None:
        """End the task at its next turn: Killed is raised where it sleeps or waits."""
        self._is_killed = True
        self._time.after(0.0, partial(self.resume, self.pauses))

    def resume(self, pause: int) -> None:
        """Let it go on until its next pause, unless the pause of that number has ended. Not for tasks to call."""
        if self.has_ended or pause != self.pauses:
            return
        self.pauses += 1
        self._time.run_task(self, self._greenlet)

    def prepare_to_pause(self) -> None:
        """Call `before_pause`. For the task itself. Raises Killed."""
        if self._is_killed:
            raise Killed(self.name)
        self._before_pause()

    def pause(self) -> None:
        """Give way until `resume`. For the task itself. Raises Killed."""
        # Of the thread, which all tasks share: each event loop runs in a task of its own.
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        parent = self._greenlet.parent
        assert parent is not None
        parent.switch()
        asyncio._set_running_loop(loop)
        if self._is_killed:
            raise Killed(self.name)

    def _run(self) -> None:
        try:
            if not self._is_killed:
                self._work()
        except Killed:
            pass
        finally:
            self.has_ended = True


class VirtualTime:
    """The time, and the events that are to come. Callable as a clock of the control plane.

    `order`: the order of events of the same moment; without, first come, first served.
    """

    def __init__(self, order: random.Random | None = None) -> None:
        self._now = 0.0
        self._until = 0.0
        self._count = itertools.count()
        self._order = order
        self._events: list[tuple[float, float, int, Callable[[], None]]] = []
        self._current: Task | None = None
        # Whether a task runs, and not what is between tasks.
        self.is_in_task = False
        self._tasks: list[Task] = []

    def __call__(self) -> datetime:
        return BEGAN + timedelta(seconds=self._now)

    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        return self._now

    @property
    def current(self) -> Task:
        """The task that runs."""
        assert self._current is not None, "only tasks may wait"
        return self._current

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` after so many seconds, between tasks. It must not wait."""
        place = 0.0 if self._order is None else self._order.random()
        heapq.heappush(self._events, (self._now + seconds, place, next(self._count), action))

    def start(
        self, name: str, work: Callable[[], None], before_pause: Callable[[], None] = lambda: None
    ) -> Task:
        """Start a task."""
        task = Task(self, name, work, before_pause)
        self._tasks.append(task)
        self.after(0.0, partial(task.resume, task.pauses))
        return task

    def sleep(self, seconds: float) -> None:
        """Let a task sleep."""
        task = self.current
        task.prepare_to_pause()
        wakes_at = self._now + max(0.0, seconds)
        if wakes_at <= self._until and (not self._events or wakes_at < self._events[0][0]):
            # Nothing else happens before: no other task needs to run.
            self._now = wakes_at
            return
        self.after(max(0.0, seconds), partial(task.resume, task.pauses))
        task.pause()

    def run(self, until: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Run to that second, or until `is_over`. Raises the error of a task."""
        self._until = until
        while not is_over():
            if not self._events or self._events[0][0] > until:
                self._now = max(self._now, until)
                return
            self._now, _, _, action = heapq.heappop(self._events)
            action()

    def close(self) -> None:
        """End all tasks."""
        for task in self._tasks:
            task.kill()
        self.run(self._now, lambda: all(task.has_ended for task in self._tasks))

    def run_task(self, task: Task, work: greenlet) -> None:
        """Let a task run until it pauses. Raises its error. For Task."""
        before, self._current = self._current, task
        assert before is None, f"{task.name} was resumed by the task {before}"
        work.parent = getcurrent()
        self.is_in_task = True
        try:
            work.switch()
        finally:
            self._current, self.is_in_task = None, False


class VirtualEvent(threading.Event):
    """An event that tasks wait for in virtual time."""

    def __init__(self, owner: VirtualTime) -> None:
        super().__init__()
        self._time = owner
        self._waiting: list[Callable[[], None]] = []

    def wait(self, timeout: float | None = None) -> bool:
        """See threading.Event."""
        if self.is_set():
            return True
        task = self._time.current
        task.prepare_to_pause()
        resume = partial(task.resume, task.pauses)
        self._waiting.append(resume)
        if timeout is not None:
            self._time.after(timeout, resume)
        task.pause()
        if resume not in self._waiting:
            return True
        self._waiting.remove(resume)
        return False

    def set(self) -> None:
        """See threading.Event."""
        super().set()
        waiting, self._waiting = self._waiting, []
        for resume in waiting:
            self._time.after(0.0, resume)
