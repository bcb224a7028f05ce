"""THE MAIN PATH of the control plane: look, compare, do the one next thing, forget.

Each round, for each model that has work, one of: mirror the live pointer; put a published version
in place; take the one job in flight (or else the oldest that waits) one step further. Everything it
knows is in the database and in object storage: it can die at any line and start again anywhere.
Truth, in this order: committed row > complete candidate in object storage > the launcher's word.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.control import attempts, promote, publish
from service.control.context import Context
from service.database import jobs, models, versions
from service.database.rows import JobRecord, ModelRecord
from service.errors import DatabaseError, DatabaseUnavailable
from service.launchers.port import LauncherError
from service.states import JobState
from workers.contract.errors import StorageUnavailable

logger = logging.getLogger(__name__)

Step = Callable[[Context, JobRecord, ModelRecord], None]

STEPS: dict[JobState, Step] = {
    JobState.QUEUED: attempts.begin,
    JobState.VALIDATING: attempts.validate,
    JobState.SUBMITTING: attempts.submit,
    JobState.RUNNING: attempts.watch,
    JobState.GATING: publish.judge,
}

_OUTAGES = (LauncherError, StorageUnavailable, DatabaseUnavailable)
_LONGEST_PAUSE_SECONDS = 30.0
# Longer than any call to the launcher or a copy of a version should take.
_HEALTHY_SECONDS = 120.0


@dataclass(frozen=True)
class _Pause:
    """After an error, a model is left alone until then."""

    until: datetime
    seconds: float


class Reconciler:
    """Carries all jobs on, one small step at a time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pauses: dict[str, _Pause] = {}
        self._unchecked: set[str] | None = None
        self._last_tick = context.clock()

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set."""
        while not stop.wait(self._context.settings.reconcile_seconds):
            try:
                self.tick()
            except Exception as error:  # noqa: BLE001
                # Listing the models failed. If that ended the thread, no job would ever get on.
                self._report(error, "a round of the reconciler failed", {})

    def is_healthy(self) -> bool:
        """Whether rounds come to an end."""
        age = self._context.clock() - self._last_tick
        return age < timedelta(seconds=_HEALTHY_SECONDS)

    def tick(self) -> None:
        """One round over all models that have work."""
        for name in self._names():
            self._attend(name)
        self._context.metrics.ticks.inc()
        self._last_tick = self._context.clock()

    def _names(self) -> list[str]:
        with self._context.database.read() as connection:
            if self._unchecked is None:
                self._unchecked = set(models.with_live_version(connection))
            return sorted({*models.with_work(connection), *self._unchecked})

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
        self._check_mirror(name)
        with self._context.database.read() as connection:
            model = models.find(connection, name)
            unstored = versions.oldest_unstored(connection, name)
            job = jobs.current(connection, name)
        if model is None:
            return
        if model.mirrored_generation < model.live_generation:
            promote.mirror(self._context, model)
        elif unstored is not None:
            publish.store_version(self._context, unstored)
        elif job is not None:
            self._step(job, model)

    def _check_mirror(self, name: str) -> None:
        """Once per model after a start: another process may have died while it mirrored."""
        if not self._unchecked or name not in self._unchecked:
            return
        with self._context.database.read() as connection:
            model = models.find(connection, name)
        if model is not None:
            promote.recheck_mirror(self._context, model)
        self._unchecked.discard(name)

    def _step(self, job: JobRecord, model: ModelRecord) -> None:
        try:
            if job.cancel_requested:
                attempts.stop(self._context, job)
            else:
                STEPS[job.state](self._context, job, model)
        except (LauncherError, StorageUnavailable) as error:
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
