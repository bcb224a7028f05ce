"""A replica of the control plane in virtual time: the product's loops, and its workers."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.simulation.memory import MemoryStore
from benchmarks.simulation.ports import (
    Costs,
    Processor,
    Remote,
    RemoteDatabase,
    RemoteLauncher,
    RemoteStore,
    Statements,
    VirtualStatusCache,
)
from benchmarks.simulation.virtual_time import Task, VirtualEvent, VirtualTime
from service.context import Context
from service.database.rows import Event
from service.jobs.reconciler import Reconciler
from service.jobs.scheduler import Scheduler
from service.jobs.workqueue import WakeSignal
from service.launchers.port import Launcher
from service.loops import PeriodicLoop
from service.telemetry.metrics import EventObserver, Metrics


class _Stop(threading.Event):
    """What a loop waits for between two rounds. It is never set: a replica is killed."""

    def __init__(self, time: VirtualTime) -> None:
        super().__init__()
        self._time = time

    def wait(self, timeout: float | None = None) -> bool:
        """See threading.Event."""
        self._time.sleep(timeout or 0.0)
        return False


class Replica:
    """One process of the service. `context` must be one of virtual time; `more`: further loops."""

    def __init__(
        self, name: str, time: VirtualTime, context: Context, more: Sequence[PeriodicLoop] = ()
    ) -> None:
        self.name = name
        self.context = context
        self.is_alive = True
        self.reconciler = Reconciler(context, name)
        self._time = time
        # Workers without a key, and when the next one is to look at the queue.
        self._idle: list[Task] = []
        self._looks_at = float("inf")
        loops = (self.reconciler, self.reconciler.monitor, Scheduler(context), *more)
        work = [(loop.name, partial(loop.run, _Stop(time))) for loop in loops]
        work += [("worker", partial(self._work))] * context.tuning.reconcile_workers
        self._tasks = [
            time.start(f"{name}/{what}", each, before_pause=self.wake_workers)
            for what, each in work
        ]

    def kill(self) -> None:
        """End it as a crash does."""
        self.is_alive = False
        self._idle.clear()
        for task in self._tasks:
            task.kill()

    def cpu_seconds(self) -> float:
        """Seconds of the real processor that it has used."""
        return sum(task.cpu_seconds for task in self._tasks)

    def notify(self, model: str) -> None:
        """Deliver another replica's event, unless the replica was killed. Not for tasks to call."""
        if self.is_alive:
            self.reconciler.wake(model)
            self.wake_workers()

    def wake_workers(self) -> None:
        """Wake an idle worker if a key is due, and look again when the next one is."""
        if not self._idle:
            return
        due = self.reconciler.queue.next_due()
        if due == 0:
            worker = self._idle.pop(0)
            self._time.after(0.0, partial(worker.resume, worker.pauses))
        elif due is not None and self._time.seconds() + due < self._looks_at:
            self._looks_at = self._time.seconds() + due
            self._time.after(due, self._look)

    def _look(self) -> None:
        self._looks_at = float("inf")
        self.wake_workers()

    def _work(self) -> None:
        """Process keys, as `service.jobs.workers.Workers` does; only the wait for a key is another one."""
        queue = self.reconciler.queue
        while True:
            key = queue.get(0.0)
            if key is not None:
                self.reconciler.process(key)
            else:
                self._idle.append(self._time.current)
                self._time.current.pause()


@dataclass(frozen=True)
class SharedParts:
    """What replicas share. `see_live` is called with each live.json, `announce` with each event of a replica."""

    time: VirtualTime
    template: Context
    memory: MemoryStore
    cluster: Launcher
    statements: Statements
    costs: Costs
    seed: int
    see_live: Callable[[str, bytes], None]
    announce: Callable[[str, Event], None]


@dataclass(frozen=True)
class Machine:
    """Processor of one replica, and the counters of its calls."""

    processor: Processor
    store: Remote
    launcher: Remote


def new_machine(shared: SharedParts, name: str) -> Machine:
    """Return the machine of a new replica."""
    calls = partial(Remote, shared.time, shared.costs)
    return Machine(
        Processor(shared.time),
        calls(f"{shared.seed} {name} store"),
        calls(f"{shared.seed} {name} launcher"),
    )


def new_context(shared: SharedParts, name: str, machine: Machine) -> Context:
    """Return the parts of a new replica, whose calls take virtual time."""
    template, time, wake = shared.template, shared.time, WakeSignal()
    observer = EventObserver(Metrics(), wake.notify)
    observer.job_changed = VirtualEvent(time)

    def observe(event: Event) -> None:
        observer(event)
        shared.announce(name, event)

    remote = RemoteLauncher(shared.cluster, machine.launcher)
    launcher = VirtualStatusCache(remote, template.tuning.launcher_seconds, time)
    return replace(
        template,
        database=RemoteDatabase(
            template.database, observe, shared.statements, machine.processor, shared.costs
        ),
        store=RemoteStore(shared.memory, machine.store, shared.see_live),
        launcher=launcher,
        driver_launcher=launcher,
        wake_signal=wake,
        job_changed=observer.job_changed,
        metrics=observer.metrics,
        clock=time,
    )
