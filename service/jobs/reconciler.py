"""THE MAIN PATH of the control plane: look, compare, do the one next thing, forget.

Each round, for each model that has work, one of: mirror the live pointer; judge the version on trial;
put a published version in place; take the one job in flight (or else the oldest that waits) one step
further. What reads or copies whole files is done in a thread beside the rounds. Everything it knows is
in the database and in object storage: it can die at any line and start again anywhere.
Truth, in this order: committed row > complete candidate in object storage > the launcher's word.
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
    # What is held waits for a person.
    JobState.HELD: lambda _context, _job, _model: None,
}

# What a person must see to; nothing is wrong with this program.
_OUTAGES = (LauncherError, StorageUnavailable, DatabaseUnavailable, StaleDatabase)
_LONGEST_PAUSE_SECONDS = 30.0
# However much happens, somebody else must get to the processor as well.
_SHORTEST_PAUSE_SECONDS = 0.01
_CHECKED_IN_A_ROUND = 50
# Replicas tell what they have seen every few seconds.
_BETWEEN_LOOKS_AT_A_TRIAL = timedelta(seconds=3)
# Longer than any call to the launcher should take.
_HEALTHY_SECONDS = 120.0
# Longer than it takes to read, check and copy the largest version over a slow line.
_LONGEST_STEP_SECONDS = 1800.0


@dataclass(frozen=True)
class _Pause:
    """After an error, a model is left alone until then."""

    until: datetime
    seconds: float


@dataclass(frozen=True)
class _Tasks:
    """What there is to do for a model."""

    model: ModelRecord
    trial: CanaryRecord | None
    unstored: VersionRecord | None
    job: JobRecord | None

    @property
    def is_large(self) -> bool:
        """Whether the next thing reads or copies the files of a whole version."""
        is_gating = self.job is not None and self.job.state == JobState.GATING
        return self.unstored is not None or is_gating


class Reconciler:
    """Carries jobs on, one small step at a time.

    Several services share the models by leases: whoever holds a model's lease looks after it, and
    the lease of one that died runs out. Leases save work and quarrels. That two which believe in
    the same lease do no harm is what the fence is for.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._name = f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._pauses: dict[str, _Pause] = {}
        # Models whose live.json may not be what the database believes it is.
        self._unchecked: dict[str, None] = {}
        self._has_listed_live = False
        # When the trial of a model was judged last.
        self._judged_at: dict[str, datetime] = {}
        self._last_tick = context.clock()
        self._aside = BackgroundSteps(context.threads, context.wake_signal.notify, context.clock)

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set, and between them what has just happened here.

        A tenant who makes much happen must not multiply the looks at everybody's jobs.
        """
        due = time.monotonic()
        while not stop.wait(_SHORTEST_PAUSE_SECONDS):
            rung = self._context.wake_signal.wait(max(0.0, due - time.monotonic()))
            is_due = time.monotonic() >= due
            if is_due:
                due = time.monotonic() + self._context.settings.reconcile_seconds
            try:
                self.tick(None if is_due else rung)
            except Exception as error:  # noqa: BLE001
                # Listing the models failed. If that ended the thread, no job would ever get on.
                self._report(error, "a round of the reconciler failed", {})

    def stop(self) -> None:
        """Leave the models to others at once."""
        with self._context.database.write() as connection:
            models.release(connection, self._name)

    def is_healthy(self) -> bool:
        """Whether rounds come to an end."""
        return self.seconds_since_round() < _HEALTHY_SECONDS

    def seconds_since_round(self) -> float:
        """How long ago the last round came to an end."""
        return (self._context.clock() - self._last_tick).total_seconds()

    def hung(self) -> str | None:
        """What is wrong if a step beside the rounds does not end: only a new process is rid of it."""
        longest = self._aside.longest()
        if longest is None or longest[1] < _LONGEST_STEP_SECONDS:
            return None
        model, seconds = longest
        return f"judging or storing a version of model {model!r} has not ended for {seconds:.0f} s"

    def tick(self, only: frozenset[str] | None = None) -> None:
        """One round over all models that have work, or those of them that are named."""
        with self._context.metrics.round():
            for name, ended in self._aside.ended().items():
                self._guard(name, ended.result)
            for name in self._names():
                if only is None or name in only or ALL_MODELS in only:
                    self._attend(name)
        self._last_tick = self._context.clock()

    def _names(self) -> list[str]:
        """The models that are ours to look after in this round."""
        self._lease()
        now = self._context.clock()
        with self._context.database.read() as connection:
            if not self._has_listed_live:
                self._unchecked |= dict.fromkeys(models.with_pointer(connection))
                self._has_listed_live = True
            leased = models.leased(connection, self._name, now)
        self._context.metrics.leases_held.set(len(leased))
        # Some of them: after a start there may be thousands, and jobs must not wait for all.
        unchecked = islice(self._unchecked, _CHECKED_IN_A_ROUND)
        return sorted({*leased, *unchecked})

    def _lease(self) -> None:
        """Claim what nobody has; renew ours at half time, so that most rounds write nothing."""
        now = self._context.clock()
        whole = timedelta(seconds=self._context.settings.lease_seconds)
        renew_before = now + whole / 2
        with self._context.database.read() as connection:
            if not models.claimable(connection, self._name, now, renew_before):
                return
        with self._context.database.write() as connection:
            models.claim(connection, self._name, now, renew_before, now + whole)

    def _attend(self, name: str) -> None:
        """One model's turn."""
        pause = self._pauses.get(name)
        if pause is None or self._context.clock() >= pause.until:
            self._guard(name, partial(self._advance, name))

    def _guard(self, name: str, step: Callable[[], None]) -> None:
        """Errors of one model stay its own."""
        try:
            step()
        except Exception as error:  # noqa: BLE001
            # Whatever it is, the other models' jobs must get on; this one is tried again.
            self._report(
                error, f"reconciliation of model {name} failed; will retry", {"model": name}
            )
            self._pauses[name] = self._longer(self._pauses.get(name))
        else:
            # What goes on beside the rounds may still fail as it did before.
            if not self._aside.is_busy(name):
                self._pauses.pop(name, None)

    def _advance(self, name: str) -> None:
        with self._behind_told(name):
            self._go_on(name)

    @contextmanager
    def _behind_told(self, name: str) -> Iterator[None]:
        """Where the database turns out to be behind the bucket, the model's job says so.

        An attempt that runs is watched all the same, and one that is not wanted any more is stopped.
        """
        try:
            yield
        except StaleDatabase as error:
            tasks = self._look(name)
            if tasks is not None and tasks.job is not None:
                if tasks.job.state == JobState.RUNNING or tasks.job.cancel_requested:
                    self._step(tasks.job, tasks.model)
                else:
                    self._tell_user(tasks.job, f"waiting: {error}")
            raise

    def _go_on(self, name: str) -> None:
        self._check_mirror(name)
        tasks = self._look(name)
        if tasks is None:
            return
        if not tasks.model.is_mirrored:
            with self._context.metrics.step("mirror"):
                self._mirror(name)
        elif tasks.model.deleted_at is None and not self._aside.is_busy(name):
            self._carry_on(tasks)

    def _look(self, name: str) -> _Tasks | None:
        """What there is to do; None where the model is not ours."""
        with self._context.database.read() as connection:
            model = models.find(connection, name)
            trial = canaries.running(connection, name)
            unstored = versions.oldest_unstored(connection, name)
            job = jobs.current(connection, name)
        if model is None or model.lease_owner != self._name:
            return None
        return _Tasks(model, trial, unstored, job)

    def _carry_on(self, tasks: _Tasks) -> None:
        """The one next thing, once the replicas know all that is decided."""
        if tasks.trial is not None and self._may_judge(tasks.model.name):
            with self._context.metrics.step("judge"):
                canary_rule.look(self._context, tasks.trial)
        elif tasks.is_large:
            self._begin_aside(tasks)
        elif tasks.job is not None:
            self._step(tasks.job, tasks.model)

    def _begin_aside(self, tasks: _Tasks) -> None:
        name = tasks.model.name
        has_place = self._aside.begin(name, partial(self._finish, name))
        if not has_place and tasks.unstored is None and tasks.job is not None:
            self._tell_user(tasks.job, "waiting: other candidates are being judged and stored")

    def _finish(self, name: str) -> None:
        """Beside the rounds: judge the candidate or store the version, if that is still to be done."""
        tasks = self._look(name)
        if tasks is None or tasks.model.deleted_at is not None:
            return
        if tasks.unstored is not None:
            step = self._context.metrics.step("store", tasks.unstored.job)
            with self._behind_told(name), step:
                publish.store_version(self._context, tasks.unstored)
        elif tasks.job is not None and tasks.is_large:
            self._step(tasks.job, tasks.model)

    def _may_judge(self, name: str) -> bool:
        """Not in each round: it reads the store, and the model's jobs must get on as well."""
        now, before = self._context.clock(), self._judged_at.get(name)
        if before is not None and now - before < _BETWEEN_LOOKS_AT_A_TRIAL:
            return False
        self._judged_at[name] = now
        return True

    def _mirror(self, name: str) -> None:
        """If this fails half-way, what was written may be older than what another one wrote."""
        self._unchecked[name] = None
        live_pointer.mirror(self._context, name)
        self._unchecked.pop(name, None)

    def _check_mirror(self, name: str) -> None:
        """Once per model after a start: another process may have died while it mirrored."""
        if name not in self._unchecked:
            return
        # To the end: one that cannot be checked must not keep the others from it.
        self._unchecked[name] = self._unchecked.pop(name)
        with self._context.database.read() as connection:
            model = models.find(connection, name)
        if model is not None:
            live_pointer.recheck_mirror(self._context, model)
        self._unchecked.pop(name, None)

    def _step(self, job: JobRecord, model: ModelRecord) -> None:
        try:
            if job.cancel_requested:
                with self._context.metrics.step("stop"):
                    attempts.stop(self._context, job)
            else:
                with self._context.metrics.step(job.state, job.id):
                    STEPS[job.state](self._context, job, model)
        except (LauncherError, StorageUnavailable, StaleDatabase) as error:
            self._tell_user(job, f"waiting: {error}")
            raise
        except DatabaseError:
            raise
        except Exception as error:
            # Whoever waits for the job should not have to read our log to see that it is stuck.
            kind = type(error).__name__
            self._tell_user(
                job, f"waiting: internal server error ({kind}); see the log of the service"
            )
            raise

    def _tell_user(self, job: JobRecord, message: str) -> None:
        if message == job.message:
            return
        with self._context.database.write() as connection:
            jobs.set_message(connection, job, message)

    def _longer(self, pause: _Pause | None) -> _Pause:
        shortest = self._context.settings.reconcile_seconds
        seconds = min(2 * pause.seconds if pause else shortest, _LONGEST_PAUSE_SECONDS)
        return _Pause(self._context.clock() + timedelta(seconds=seconds), seconds)

    def _report(self, error: Exception, what: str, fields: dict[str, str]) -> None:
        self._context.metrics.reconcile_errors.labels(error=type(error).__name__).inc()
        if isinstance(error, _OUTAGES):
            logger.warning("%s: %s", what, error, extra=fields)
        else:
            logger.error("%s", what, exc_info=error, extra=fields)
