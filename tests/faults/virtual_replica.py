"""A replica of the control plane in virtual time: the product's loops, and its workers."""

import threading
from functools import partial

from service.context import Context
from service.jobs.reconciler import Reconciler
from service.jobs.scheduler import Scheduler
from tests.faults.virtual_time import Task, VirtualEvent, VirtualTime


class _Stop(threading.Event):
    """What a loop waits for between two rounds. It is never set: a replica is killed."""

    def __init__(self, time: VirtualTime) -> None:
        super().__init__()
        self._time = time

    def wait(self, timeout: float | None = None) -> bool:
        """See threading.Event."""
        self._time.sleep(timeout or 0.0)
        return False


class VirtualReplica:
    """One process of the service. `context` must be one of virtual time."""

    def __init__(self, name: str, time: VirtualTime, context: Context) -> None:
        self.is_alive = True
        self._reconciler = Reconciler(context, name)
        self._time = time
        # Workers without a key, and when the next one is to look at the queue.
        self._idle: list[Task] = []
        self._looks_at = float("inf")
        loops = (self._reconciler, self._reconciler.monitor, Scheduler(context, VirtualEvent(time)))
        work = [(loop.name, partial(loop.run, _Stop(time))) for loop in loops]
        work += [("worker", partial(self._work))] * context.tuning.reconcile_workers
        self._tasks = [
            time.start(f"{name}/{what}", each, before_pause=self._wake_workers)
            for what, each in work
        ]

    def kill(self) -> None:
        """End it as a crash does."""
        self.is_alive = False
        self._idle.clear()
        for task in self._tasks:
            task.kill()

    def notify(self, model: str) -> None:
        """Deliver another replica's event, unless the replica was killed. Not for tasks to call."""
        if self.is_alive:
            self._reconciler.wake(model)
            self._wake_workers()

    def _wake_workers(self) -> None:
        """Wake an idle worker if a key is due, and look again when the next one is."""
        if not self._idle:
            return
        due = self._reconciler.queue.next_due()
        if due == 0:
            worker = self._idle.pop(0)
            self._time.after(0.0, partial(worker.resume, worker.pauses))
        elif due is not None and self._time.seconds() + due < self._looks_at:
            self._looks_at = self._time.seconds() + due
            self._time.after(due, self._look)

    def _look(self) -> None:
        self._looks_at = float("inf")
        self._wake_workers()

    def _work(self) -> None:
        """Process keys, as `service.jobs.reconciler.Workers` does; only the wait for a key is another one."""
        queue = self._reconciler.queue
        while True:
            key = queue.get(0.0)
            if key is not None:
                self._reconciler.process(key)
            else:
                self._idle.append(self._time.current)
                self._time.current.pause()
