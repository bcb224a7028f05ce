"""The reconciler, the main path of the control plane: compare what is with what should be, and do one next thing.

A key of the work queue names a model and a kind of work; processing it reads the present state and does one of these:
write the live pointer; judge a candidate or store a published version; advance the job whose turn it
is by one step; advance each job that is queued or being prepared. Events wake the keys of their model, a key says when
it is due again, and a slow resync finds what was missed. All state is in the database and in object storage: the process
may die at any line, and any instance continues. Sources of truth, in this order: committed row > complete candidate in
object storage > launcher status.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from cmcl.contract.api.jobs import JobState
from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.job import submission_id
from service.context import Context
from service.core.clock import steady
from service.core.errors import DatabaseUnavailable, StaleDatabase
from service.core.loops import HUNG_SECONDS, Loop, PeriodicLoop
from service.database.engine import Database, Listener
from service.database.queries import instances, job_queue, models, versions
from service.database.rows import JobRow, ModelRow, VersionRow
from service.jobs import attempts, publish
from service.jobs.leases import ModelLeases, new_name
from service.jobs.monitor import AttemptMonitor
from service.jobs.preparation import Preparations
from service.jobs.transitions import run_step, set_message
from service.jobs.workqueue import Key, Work, WorkQueue
from service.launchers.port import LauncherError
from service.registry import live_pointer

logger = logging.getLogger(__name__)

Step = Callable[[Context, JobRow, ModelRow], None]

# Step of the job whose turn it is, except of a running one (`attempts.watch`) and of jobs that are being prepared (`Preparations`).
STEPS: dict[JobState, Step] = {
    JobState.PREPARED: attempts.begin,
    JobState.SUBMITTING: attempts.submit,
    JobState.GATING: publish.decide,
    # A held candidate waits for an approval.
    JobState.HELD: lambda _context, _job, _model: None,
}

# Upper bound on how long a thread takes to see that the service stops.
_WAIT_SECONDS = 1.0
# A key that waits for longer than this shows that there are too few workers, or that they hang.
_LATE_SECONDS = 60.0


# Faults outside this program: logged without a traceback.
_OUTAGES = (LauncherError, StorageUnavailable, DatabaseUnavailable, StaleDatabase)
# Longer than any call of the launcher takes.
_HEALTHY_SECONDS = 120.0
# After a start; a pointer is also checked before each other step of its model.
_POINTERS_PER_SECOND = 50


@dataclass(frozen=True)
class _Tasks:
    """What there is to do for a model."""

    model: ModelRow
    unstored: VersionRow | None
    job: JobRow | None

    @property
    def is_any(self) -> bool:
        waits = self.job is not None or self.unstored is not None
        return waits or not self.model.is_pointer_written


class Reconciler(PeriodicLoop):
    """Processes keys of the work queue; its own loop renews leases and resyncs.

    Instances divide the models by leases: the holder of a model's lease reconciles it, and the lease of an instance that
    died expires. Leases save work; the fence on each row makes two holders of one lease harmless. `instance` is its name.
    """

    name = "reconciler"
    pause_seconds = 1.0
    starts_at_once = True

    def __init__(self, context: Context, instance: str | None = None) -> None:
        super().__init__()
        self._context = context
        self.instance = instance or new_name()
        self._now = steady(context.clock)
        workers = context.tuning.reconcile_workers
        # Checks of pointers take a quarter of the workers: the others stay free for jobs.
        limits = {Work.POINTER: max(1, workers // 4)}
        self.queue = WorkQueue(self._now, limits, workers // 2)
        self.leases = ModelLeases(context, self.instance, self.queue.is_busy)
        # Models whose live.json may differ from what the database says of it.
        self._unchecked: dict[str, None] = {}
        self._has_listed_live = False
        self._last_round = context.clock()
        self._resync_at = float("-inf")
        self._preparations = Preparations(context, self._now)
        self.monitor = AttemptMonitor(context, self.instance, self.queue)
        context.database.subscribe(lambda event: self.wake(event.model))

    def step(self, stop: threading.Event) -> float:
        """Renew the leases, and resync if it is due."""
        if claimed := self.leases.renew():
            self._wake_with_steps(claimed)
        if self._now() >= self._resync_at:
            self.resync(self._context.tuning.resync_seconds)
        self._last_round = self._context.clock()
        return self.leases.round_seconds

    def report(self, error: Exception) -> None:
        self._report(error, "a round of the reconciler failed", {})

    def release(self) -> None:
        """See Loop: the leases of models."""
        self.leases.release()

    def problem(self) -> str | None:
        """See Loop: a round that fails does not count as one."""
        seconds = self.seconds_since_round()
        return None if seconds < _HEALTHY_SECONDS else f"no round has succeeded for {seconds:.0f} s"

    def seconds_since_round(self) -> float:
        return (self._context.clock() - self._last_round).total_seconds()

    def wake(self, model: str) -> None:
        """Have a model processed now: an event of it was committed, by this process or another one."""
        self.queue.add(Key(model, Work.JOBS))
        self.queue.add(Key(model, Work.DATASETS))

    def wake_preparations(self) -> None:
        """Have all datasets processed that are being prepared: the driver has changed."""
        for name in self._preparations.models():
            self.queue.add(Key(name, Work.DATASETS))

    def resync(self, within_seconds: float = 0.0) -> None:
        """Have the leased models processed for which a step may be due, evenly over `within_seconds`."""
        self._resync_at = self._now() + self._context.tuning.resync_seconds
        if not self._has_listed_live:
            with self._context.database.read() as connection:
                names = models.with_pointer(connection)
            self._unchecked |= dict.fromkeys(names)
            self._has_listed_live = True
            for place, name in enumerate(names):
                key = Key(name, Work.POINTER)
                self.queue.add_with_low_priority(key, place // _POINTERS_PER_SECOND)
        self._wake_with_steps(within_seconds=within_seconds)

    def _wake_with_steps(self, names: list[str] | None = None, within_seconds: float = 0.0) -> None:
        """Have those of the models, or of all leased ones, processed for which a step may be due."""
        with self._context.database.read() as connection:
            due = job_queue.with_steps(connection, self.instance, names)
        for place, name in enumerate(due):
            for work in (Work.JOBS, Work.DATASETS):
                self.queue.add_with_low_priority(Key(name, work), within_seconds * place / len(due))

    def process(self, key: Key) -> None:
        """Process a key that the queue returned. An error delays this key, and does not reach the others."""
        try:
            with self._context.metrics.key_processed(key.work):
                seconds = self._process(key)
        except Exception as error:  # noqa: BLE001
            what = f"reconciliation of model {key.model} ({key.work}) failed; will retry"
            self._report(error, what, {"model": key.model})
            self.queue.retry(key)
        else:
            self.queue.forget(key)
            if seconds is not None:
                self.queue.add_after(key, seconds)
        finally:
            self.queue.done(key)

    def _process(self, key: Key) -> float | None:
        """Process the key. Returns the seconds after which it is due again; None: not before an event."""
        match key.work:
            case Work.JOBS:
                return self._advance(key.model)
            case Work.DATASETS:
                return self._prepare(key.model)
            case Work.POINTER:
                self._recheck_pointer(key.model)
        return None

    def _prepare(self, name: str) -> float | None:
        """Run one step of each job of the model that is queued or being prepared, if it is due."""
        with self._context.database.read() as connection:
            model = models.find(connection, name)
            # Every instance receives every event: those of another one's models must cost little.
            is_ours = model is not None and not self.leases.is_of_another(connection, model)
            listed = job_queue.to_prepare(connection, name) if is_ours else []
            driver = instances.newest_driver(connection) if listed else None
        self._preparations.keep(name, listed)
        if driver is None or model is None or model.deleted_at or not self.leases.holds(model):
            return None
        for job in listed:
            try:
                self._preparations.step(job, model, driver)
            except Exception as error:  # noqa: BLE001
                # It has a pause of its own, and does not reach the model's other datasets.
                what = f"preparation of {job.id} for model {name} failed; will retry"
                self._report(error, what, {"model": name})
        return self._preparations.next_due(name, listed)

    def _advance(self, name: str) -> float | None:
        """Do the next thing for a model. The pointer comes first: replicas must see all that was decided."""
        with self._waiting_if_stale(name):
            self._recheck_pointer(name)
            tasks = self._tasks(name)
            if tasks is None:
                return None
            if not tasks.model.is_pointer_written:
                with self._context.metrics.step("pointer"):
                    self._write_pointer(name)
                return 0.0
            if tasks.model.deleted_at is not None:
                return None
            if tasks.unstored is not None:
                publish.store_version(self._context, tasks.unstored)
                return 0.0
            return None if tasks.job is None else self._step(tasks.job, tasks.model)

    @contextmanager
    def _waiting_if_stale(self, name: str) -> Iterator[None]:
        """Note in the model's job that the database is stale; attempts are watched and stopped nevertheless."""
        try:
            yield
        except StaleDatabase as error:
            tasks = self._tasks(name)
            if tasks is not None and tasks.job is not None:
                if tasks.job.state == JobState.RUNNING or tasks.job.cancel_requested:
                    self._step(tasks.job, tasks.model)
                else:
                    set_message(self._context, tasks.job, f"waiting: {error}")
            raise

    def _tasks(self, name: str) -> _Tasks | None:
        """What there is to do; None if another instance holds the lease."""
        with self._context.database.read() as connection:
            model = models.find(connection, name)
            if model is None or self.leases.is_of_another(connection, model):
                return None
            unstored = versions.oldest_unstored(connection, name)
            job = job_queue.current(connection, name)
        tasks = _Tasks(model, unstored, job)
        return tasks if tasks.is_any and self.leases.holds(model) else None

    def _write_pointer(self, name: str) -> None:
        # If this fails half-way, what it wrote may be older than what another instance wrote.
        self._unchecked[name] = None
        live_pointer.write(self._context, name)
        self._unchecked.pop(name, None)

    def _recheck_pointer(self, name: str) -> None:
        """Once per model after a start: another process may have died while it wrote."""
        if name not in self._unchecked:
            return
        with self._context.database.read() as connection:
            model = models.find(connection, name)
        if model is not None:
            live_pointer.recheck_pointer(self._context, model)
        self._unchecked.pop(name, None)

    def _step(self, job: JobRow, model: ModelRow) -> float | None:
        """Run the step of the job's state. Returns after how many seconds it is due again; None: not before an event."""
        context = self._context
        if job.cancel_requested:
            run_step(context, job, "stop", partial(attempts.stop, context, job))
            return context.tuning.launcher_seconds
        if job.state == JobState.RUNNING:
            shows_end = self.monitor.shows_end(submission_id(job.id, job.attempt))
            step = partial(attempts.watch, context, job, shows_end=shows_end)
            return run_step(context, job, job.state, step)
        run_step(context, job, job.state, partial(STEPS[job.state], context, job, model))
        return None

    def _report(self, error: Exception, what: str, fields: dict[str, str]) -> None:
        self._context.metrics.reconcile_errors.labels(error=type(error).__name__).inc()
        if isinstance(error, _OUTAGES):
            logger.warning("%s: %s", what, error, extra=fields)
        else:
            logger.error("%s", what, exc_info=error, extra=fields)


class Workers(Loop):
    """Threads that process the keys of the queue; its heartbeat is that of any of them."""

    name = "workqueue"

    def __init__(self, queue: WorkQueue, process: Callable[[Key], None], number: int) -> None:
        super().__init__()
        self._queue = queue
        self._process = process
        self._number = number

    def run(self, stop: threading.Event) -> None:
        # Daemons: a call that hangs must not keep the process from exiting.
        threads = [
            threading.Thread(target=self._work, args=[stop], name=f"worker-{i}", daemon=True)
            for i in range(self._number)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def problem(self) -> str | None:
        """See Loop: also if keys wait for long although workers make progress."""
        seconds = self._queue.oldest_seconds(Work.POINTER)
        if seconds > _LATE_SECONDS:
            return (
                f"a model has waited for a worker for {seconds:.0f} s; {self._queue.depth()} wait"
            )
        return super().problem()

    def hung(self) -> str | None:
        """See Loop: also one worker that does not end."""
        longest = self._queue.longest_running()
        if longest is not None and longest[1] >= HUNG_SECONDS:
            key, seconds = longest
            return (
                f"work on the {key.work} of model {key.model!r} has not ended for {seconds:.0f} s"
            )
        return super().hung()

    def _work(self, stop: threading.Event) -> None:
        with self._noting_end():
            while not stop.is_set():
                key = self._queue.get(_WAIT_SECONDS)
                if key is not None:
                    self._process(key)
                self.beat()


class Notifications(PeriodicLoop):
    """Wakes models whose events other instances have committed to a shared PostgreSQL.

    It saves latency only: the resync finds what was missed.
    """

    name = "notifications"
    outages = (DatabaseUnavailable,)
    outage_message = "events of other instances are not received; will retry"
    pause_seconds = 1.0
    starts_at_once = True

    def __init__(
        self, database: Database, wake: Callable[[str], None], resync: Callable[[], None]
    ) -> None:
        super().__init__()
        self._listener = Listener(database)
        self._wake = wake
        self._resync = resync

    def step(self, stop: threading.Event) -> float:
        if self._listener.connect():
            # Events before this moment were missed.
            self._resync()
        for model in self._listener.wait(_WAIT_SECONDS):
            self._wake(model)
        return 0.0

    def report(self, error: Exception) -> None:
        self._listener.close()
        super().report(error)
