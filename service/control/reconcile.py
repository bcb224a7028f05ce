"""THE MAIN PATH of the control plane: look, compare, do the one next thing, forget.

Each round, for each model that has work, one of: mirror the live pointer; judge the version on trial;
put a published version in place; take the one job in flight (or else the oldest that waits) one step
further. What reads or copies whole files is done in a thread beside the rounds. Everything it knows is in the database and in object storage: it can die at any line and start again anywhere.
Truth, in this order: committed row > complete candidate in object storage > the launcher's word.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

from service.control.aside import Aside
from service.control.bell import EVERYBODY
from service.control.context import Context
from service.control.models import mirror, rollout
from service.control.steps import attempts, publish
from service.control.steps.watch import watch
from service.database.queries import jobs, models, trials, versions
from service.database.rows import JobRecord, ModelRecord, TrialRecord, VersionRecord
from service.errors import DatabaseBehind, DatabaseError, DatabaseUnavailable
from service.launchers.port import LauncherError
from service.states import JobState
from workers.contract.errors import StorageUnavailable

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
_OUTAGES = (LauncherError, StorageUnavailable, DatabaseUnavailable, DatabaseBehind)
_LONGEST_PAUSE_SECONDS = 30.0
# However much happens, somebody else must get to the processor as well.
_SHORTEST_PAUSE_SECONDS = 0.01
_CHECKED_IN_A_ROUND = 50
# Replicas tell what they have seen every few seconds.
_BETWEEN_LOOKS_AT_A_TRIAL = timedelta(seconds=3)
# Longer than any call to the launcher should take.
_HEALTHY_SECONDS = 120.0


@dataclass(frozen=True)
class _Pause:
    """After an error, a model is left alone until then."""

    until: datetime
    seconds: float


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
        self._unchecked: set[str] = set()
        self._has_listed_live = False
        # When the trial of a model was judged last.
        self._judged_at: dict[str, datetime] = {}
        self._last_tick = context.clock()
        self._aside = Aside(context.threads, context.bell.ring)

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set, and between them what has just happened here.

        A tenant who makes much happen must not multiply the looks at everybody's jobs.
        """
        due = time.monotonic()
        while not stop.wait(_SHORTEST_PAUSE_SECONDS):
            rung = self._context.bell.wait(max(0.0, due - time.monotonic()))
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

    def tick(self, only: frozenset[str] | None = None) -> None:
        """One round over all models that have work, or those of them that are named."""
        with self._context.metrics.round():
            for name in self._names():
                if only is None or name in only or EVERYBODY in only:
                    self._attend(name)
        self._last_tick = self._context.clock()

    def _names(self) -> list[str]:
        """The models that are ours to look after in this round."""
        self._lease()
        now = self._context.clock()
        with self._context.database.read() as connection:
            if not self._has_listed_live:
                self._unchecked.update(models.with_pointer(connection))
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
        """One model's turn; its errors stay its own."""
        pause = self._pauses.get(name)
        if pause is not None and self._context.clock() < pause.until:
            return
        try:
            self._advance(name)
        except Exception as error:  # noqa: BLE001
            # Whatever it is, the other models' jobs must get on; this one is tried again.
            self._report(error, f"model {name} does not get on", {"model": name})
            self._pauses[name] = self._longer(pause)
        else:
            self._pauses.pop(name, None)

    def _advance(self, name: str) -> None:
        is_busy = self._aside.is_busy(name)
        self._check_mirror(name)
        with self._context.database.read() as connection:
            model = models.find(connection, name)
            trial = trials.running(connection, name)
            unstored = versions.oldest_unstored(connection, name)
            job = jobs.current(connection, name)
        if model is None or model.lease_owner != self._name:
            return
        if not model.is_mirrored:
            with self._context.metrics.step("mirror"):
                self._mirror(name)
        elif model.deleted_at is None and not is_busy:
            self._carry_on(model, trial, unstored, job)

    def _carry_on(
        self,
        model: ModelRecord,
        trial: TrialRecord | None,
        unstored: VersionRecord | None,
        job: JobRecord | None,
    ) -> None:
        """The one next thing, once the replicas know all that is decided."""
        if trial is not None and self._may_judge(model.name):
            with self._context.metrics.step("judge"):
                rollout.look(self._context, trial)
        elif unstored is not None:
            self._aside.begin(model.name, partial(self._store, unstored))
        elif job is not None and job.state == JobState.GATING:
            self._aside.begin(model.name, partial(self._step, job, model))
        elif job is not None:
            self._step(job, model)

    def _store(self, version: VersionRecord) -> None:
        with self._context.metrics.step("store", version.job):
            publish.store_version(self._context, version)

    def _may_judge(self, name: str) -> bool:
        """Not in each round: it reads the store, and the model's jobs must get on as well."""
        now, before = self._context.clock(), self._judged_at.get(name)
        if before is not None and now - before < _BETWEEN_LOOKS_AT_A_TRIAL:
            return False
        self._judged_at[name] = now
        return True

    def _mirror(self, name: str) -> None:
        """If this fails half-way, what was written may be older than what another one wrote."""
        self._unchecked.add(name)
        mirror.mirror(self._context, name)
        self._unchecked.discard(name)

    def _check_mirror(self, name: str) -> None:
        """Once per model after a start: another process may have died while it mirrored."""
        if name not in self._unchecked:
            return
        with self._context.database.read() as connection:
            model = models.find(connection, name)
        if model is not None:
            mirror.recheck_mirror(self._context, model)
        self._unchecked.discard(name)

    def _step(self, job: JobRecord, model: ModelRecord) -> None:
        try:
            if job.cancel_requested:
                with self._context.metrics.step("stop"):
                    attempts.stop(self._context, job)
            else:
                with self._context.metrics.step(job.state, job.id):
                    STEPS[job.state](self._context, job, model)
        except (LauncherError, StorageUnavailable, DatabaseBehind) as error:
            self._tell_user(job, f"waiting: {error}")
            raise
        except DatabaseError:
            raise
        except Exception as error:
            # Whoever waits for the job should not have to read our log to see that it is stuck.
            kind = type(error).__name__
            self._tell_user(job, f"waiting: the service made a mistake ({kind}); see its log")
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
