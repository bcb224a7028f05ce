"""The reconciler, the main path of the control plane: compare what is with what should be, and do one next thing.

Each round, for each model with work, one of these: mirror the live pointer; judge the canary; store a published
version; advance the job in flight (or the oldest that waits) by one step. Steps that read or copy whole files run in
the background. All state is in the database and in object storage: the process may die at any line, and any replica
continues. Sources of truth, in this order: committed row > complete candidate in object storage > launcher status.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

from cmcl.contract.errors import StorageUnavailable
from service.context import Context
from service.database.queries import canaries, jobs, models, versions
from service.database.rows import CanaryRecord, JobRecord, ModelRecord, VersionRecord
from service.errors import DatabaseError, DatabaseUnavailable, StaleDatabase
from service.jobs import attempts, publish
from service.jobs.watch import watch
from service.jobs.workqueue import ALL_MODELS, BackgroundSteps
from service.launchers.port import LauncherError
from service.loops import HUNG_SECONDS, PeriodicLoop
from service.registry import canary_rule, live_pointer
from service.states import JobState

logger = logging.getLogger(__name__)

Step = Callable[[Context, JobRecord, ModelRecord], None]

STEPS: dict[JobState, Step] = {
    JobState.QUEUED: attempts.begin,
    JobState.VALIDATING: attempts.validate,
    JobState.SUBMITTING: attempts.submit,
    JobState.RUNNING: watch,
    JobState.GATING: publish.judge,
    # A held candidate waits for an approval.
    JobState.HELD: lambda _context, _job, _model: None,
}

# Faults outside this program: logged without a traceback.
_OUTAGES = (LauncherError, StorageUnavailable, DatabaseUnavailable, StaleDatabase)
_MAX_BACKOFF_SECONDS = 30.0
_CHECKED_IN_A_ROUND = 50
# Replicas write observations every few seconds.
_CANARY_INTERVAL = timedelta(seconds=3)
# Longer than any call of the launcher takes.
_HEALTHY_SECONDS = 120.0


@dataclass(frozen=True)
class _Backoff:
    """After an error, no step of the model runs before `until`."""

    until: datetime
    seconds: float


@dataclass(frozen=True)
class _Tasks:
    """What there is to do for a model."""

    model: ModelRecord
    canary: CanaryRecord | None
    unstored: VersionRecord | None
    job: JobRecord | None

    @property
    def is_large(self) -> bool:
        """Whether the next step reads or copies the files of a whole version."""
        is_gating = self.job is not None and self.job.state == JobState.GATING
        return self.unstored is not None or is_gating


class Reconciler(PeriodicLoop):
    """Advances jobs one step at a time.

    Replicas divide the models by leases: the holder of a model's lease reconciles it, and the lease of a replica that
    died expires. Leases save work; the fence on each row makes two holders of one lease harmless.
    """

    name = "reconciler"
    # Leaves the processor to others, however many models are signalled.
    pause_seconds = 0.01

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        self._replica = f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._backoffs: dict[str, _Backoff] = {}
        # Models whose live.json may differ from what the database says of it.
        self._unchecked: dict[str, None] = {}
        self._has_listed_live = False
        # When the canary of a model was last judged.
        self._judged_at: dict[str, datetime] = {}
        self._last_tick = context.clock()
        self._due = time.monotonic()
        self._background = BackgroundSteps(
            context.threads, context.wake_signal.notify, context.clock
        )

    def step(self, stop: threading.Event) -> float:
        """Wait for a signal or the next round, then reconcile the signalled models or all.

        All models are due at the interval of the settings only: a tenant that causes many signals must not multiply
        the steps of other tenants' jobs.
        """
        woken = self._context.wake_signal.wait(max(0.0, self._due - time.monotonic()))
        is_due = time.monotonic() >= self._due
        if is_due:
            self._due = time.monotonic() + self._context.settings.reconcile_seconds
        self.tick(None if is_due else woken)
        return self.pause_seconds

    def report(self, error: Exception) -> None:
        """See PeriodicLoop."""
        self._report(error, "a round of the reconciler failed", {})

    def stop(self) -> None:
        """Release all leases, so that other replicas continue at once."""
        with self._context.database.write() as connection:
            models.release(connection, self._replica)

    def problem(self) -> str | None:
        """See Loop: a round that fails does not count as one."""
        seconds = self.seconds_since_round()
        return None if seconds < _HEALTHY_SECONDS else f"no round has succeeded for {seconds:.0f} s"

    def hung(self) -> str | None:
        """See Loop: also a step in the background that does not end."""
        longest = self._background.longest()
        if longest is not None and longest[1] >= HUNG_SECONDS:
            model, seconds = longest
            return (
                f"judging or storing a version of model {model!r} has not ended for {seconds:.0f} s"
            )
        return super().hung()

    def seconds_since_round(self) -> float:
        """Seconds since the last round that succeeded."""
        return (self._context.clock() - self._last_tick).total_seconds()

    def tick(self, only: frozenset[str] | None = None) -> None:
        """Run one round over all models with work, or over those of them that are named."""
        with self._context.metrics.round():
            for name, ended in self._background.ended().items():
                self._guard(name, ended.result)
            for name in self._names():
                is_wanted = only is None or name in only or ALL_MODELS in only
                if is_wanted and not self._is_backing_off(name):
                    self._guard(name, partial(self._advance, name))
                    self.beat()
        self._last_tick = self._context.clock()

    def _names(self) -> list[str]:
        """Names of the models to reconcile in this round."""
        self._lease()
        now = self._context.clock()
        with self._context.database.read() as connection:
            if not self._has_listed_live:
                self._unchecked |= dict.fromkeys(models.with_pointer(connection))
                self._has_listed_live = True
            leased = models.leased(connection, self._replica, now)
        self._context.metrics.leases_held.set(len(leased))
        # After a start there may be thousands, and jobs must not wait for all of them.
        unchecked = islice(self._unchecked, _CHECKED_IN_A_ROUND)
        return sorted({*leased, *unchecked})

    def _lease(self) -> None:
        """Claim free models, and renew leases at half time, so that most rounds write nothing."""
        now = self._context.clock()
        whole = timedelta(seconds=self._context.settings.lease_seconds)
        renew_before = now + whole / 2
        with self._context.database.read() as connection:
            if not models.claimable(connection, self._replica, now, renew_before):
                return
        with self._context.database.write() as connection:
            models.claim(connection, self._replica, now, renew_before, now + whole)

    def _is_backing_off(self, name: str) -> bool:
        backoff = self._backoffs.get(name)
        return backoff is not None and self._context.clock() < backoff.until

    def _guard(self, name: str, step: Callable[[], None]) -> None:
        """Run a step of one model; an error backs off that model and does not reach the others."""
        try:
            step()
        except Exception as error:  # noqa: BLE001
            self._report(
                error, f"reconciliation of model {name} failed; will retry", {"model": name}
            )
            self._backoffs[name] = self._longer(self._backoffs.get(name))
        else:
            # A step in the background may still fail as it did before.
            if not self._background.is_busy(name):
                self._backoffs.pop(name, None)

    def _advance(self, name: str) -> None:
        """Do the next thing for a model. The pointer comes first: replicas must see all that was decided."""
        with self._waiting_if_stale(name):
            self._recheck_pointer(name)
            tasks = self._tasks(name)
            if tasks is None:
                return
            if not tasks.model.is_mirrored:
                with self._context.metrics.step("mirror"):
                    self._mirror(name)
            elif tasks.model.deleted_at is not None or self._background.is_busy(name):
                return
            elif tasks.canary is not None and self._may_judge(name):
                with self._context.metrics.step("judge"):
                    canary_rule.judge_canary(self._context, tasks.canary)
            elif tasks.is_large:
                self._begin_large(tasks)
            elif tasks.job is not None:
                self._step(tasks.job, tasks.model)

    @contextmanager
    def _waiting_if_stale(self, name: str) -> Iterator[None]:
        """Note in the model's job that the database is stale, if it turns out to be.

        A running attempt is watched nevertheless, and a cancelled one is stopped.
        """
        try:
            yield
        except StaleDatabase as error:
            tasks = self._tasks(name)
            if tasks is not None and tasks.job is not None:
                if tasks.job.state == JobState.RUNNING or tasks.job.cancel_requested:
                    self._step(tasks.job, tasks.model)
                else:
                    self._set_message(tasks.job, f"waiting: {error}")
            raise

    def _tasks(self, name: str) -> _Tasks | None:
        """What there is to do; None if another replica holds the lease."""
        with self._context.database.read() as connection:
            model = models.find(connection, name)
            canary = canaries.running(connection, name)
            unstored = versions.oldest_unstored(connection, name)
            job = jobs.current(connection, name)
        if model is None or model.lease_owner != self._replica:
            return None
        return _Tasks(model, canary, unstored, job)

    def _begin_large(self, tasks: _Tasks) -> None:
        name = tasks.model.name
        is_started = self._background.begin(name, partial(self._run_large, name))
        if not is_started and tasks.unstored is None and tasks.job is not None:
            self._set_message(tasks.job, "waiting: other candidates are being judged and stored")

    def _run_large(self, name: str) -> None:
        """Judge the candidate or store the version, in the background. Reads what is to be done: it may have waited."""
        tasks = self._tasks(name)
        if tasks is None or tasks.model.deleted_at is not None:
            return
        if tasks.unstored is not None:
            step = self._context.metrics.step("store", tasks.unstored.job)
            with self._waiting_if_stale(name), step:
                publish.store_version(self._context, tasks.unstored)
        elif tasks.job is not None and tasks.is_large:
            self._step(tasks.job, tasks.model)

    def _may_judge(self, name: str) -> bool:
        """Return whether the canary is due: judging it reads the store, and the model's jobs need rounds as well."""
        now, before = self._context.clock(), self._judged_at.get(name)
        if before is not None and now - before < _CANARY_INTERVAL:
            return False
        self._judged_at[name] = now
        return True

    def _mirror(self, name: str) -> None:
        # If this fails half-way, what it wrote may be older than what another replica wrote.
        self._unchecked[name] = None
        live_pointer.mirror(self._context, name)
        self._unchecked.pop(name, None)

    def _recheck_pointer(self, name: str) -> None:
        """Once per model after a start: another process may have died while it mirrored."""
        if name not in self._unchecked:
            return
        # Moved to the end: one that cannot be checked must not block the others.
        self._unchecked[name] = self._unchecked.pop(name)
        with self._context.database.read() as connection:
            model = models.find(connection, name)
        if model is not None:
            live_pointer.recheck_mirror(self._context, model)
        self._unchecked.pop(name, None)

    def _step(self, job: JobRecord, model: ModelRecord) -> None:
        """Run the step of the job's state. An error is shown in the job's message."""
        try:
            if job.cancel_requested:
                with self._context.metrics.step("stop"):
                    attempts.stop(self._context, job)
            else:
                with self._context.metrics.step(job.state, job.id):
                    STEPS[job.state](self._context, job, model)
        except (LauncherError, StorageUnavailable, StaleDatabase) as error:
            self._set_message(job, f"waiting: {error}")
            raise
        except DatabaseError:
            raise
        except Exception as error:
            kind = type(error).__name__
            self._set_message(
                job, f"waiting: internal server error ({kind}); see the log of the service"
            )
            raise

    def _set_message(self, job: JobRecord, message: str) -> None:
        if message == job.message:
            return
        with self._context.database.write() as connection:
            jobs.set_message(connection, job, message)

    def _longer(self, backoff: _Backoff | None) -> _Backoff:
        shortest = self._context.settings.reconcile_seconds
        seconds = min(2 * backoff.seconds if backoff else shortest, _MAX_BACKOFF_SECONDS)
        return _Backoff(self._context.clock() + timedelta(seconds=seconds), seconds)

    def _report(self, error: Exception, what: str, fields: dict[str, str]) -> None:
        self._context.metrics.reconcile_errors.labels(error=type(error).__name__).inc()
        if isinstance(error, _OUTAGES):
            logger.warning("%s: %s", what, error, extra=fields)
        else:
            logger.error("%s", what, exc_info=error, extra=fields)
