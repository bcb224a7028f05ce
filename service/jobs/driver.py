"""The loop that keeps one driver running on the cluster: the process that prepares datasets and trains attempts.

The number of a driver is committed before the driver is submitted, like that of an attempt. Several instances run this
loop: each change is conditional on the number that was read, and the launcher starts an id once. Two drivers at a time do
no harm: objects that they write are named by content, or written once.
"""

import hashlib
import logging
import threading
from collections.abc import Callable
from datetime import timedelta

from cmcl.contract.api.jobs import JobState
from cmcl.contract.errors import StorageUnavailable
from service.context import Context
from service.core.errors import DatabaseUnavailable, WriteConflict
from service.core.loops import PeriodicLoop
from service.core.principal import DEFAULT_OWNER
from service.database.queries import instances
from service.database.queries.instances import DriverRow
from service.jobs.attempts import rank_options
from service.launchers.port import (
    LauncherError,
    LauncherRejected,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    status_of,
)

logger = logging.getLogger(__name__)

_WHAT = "the driver on the cluster"
# Pause of the loop while no job needs it.
_IDLE_SECONDS = 5.0
# A RayJob ends after this long without datasets, and frees its pods. On a shared cluster the driver stays.
_JOB_IDLE_SECONDS = 300
# The end of a driver that ran for this long does not count as a further failure in a row.
_LONG_RUN = timedelta(minutes=5)
_LONGEST_BACKOFF_SECONDS = 60.0
# States of jobs that need the driver, on a shared cluster and with a cluster of its own.
_ALONE = (JobState.PREPARING,)
_SHARED = (*_ALONE, JobState.SUBMITTING, JobState.RUNNING)


class DriverLoop(PeriodicLoop):
    """Submits the driver, watches it, and submits the next one when it has ended.

    On a shared Ray cluster it always runs, with resident ranks, so that both are warm. With a cluster of its own for
    each submission, it only prepares datasets: it is submitted while there are any, and ends by itself.
    """

    name = "driver"
    outages = (LauncherError, StorageUnavailable, DatabaseUnavailable, WriteConflict)
    outage_message = f"{_WHAT} is not watched; will retry"
    pause_seconds = 1.0
    starts_at_once = True

    def __init__(self, context: Context, wake: Callable[[], None]) -> None:
        """`wake` has the datasets processed that are being prepared: they show why no driver runs."""
        super().__init__()
        self._context = context
        self._wake = wake
        self._is_shared = context.settings.launcher == "ray"

    def step(self, stop: threading.Event) -> float:
        return self.pause_seconds if self.tick() else _IDLE_SECONDS

    def tick(self) -> bool:
        """Submit or watch the driver. Returns whether a job needs it.

        Raises LauncherError, after the reason was stored as the message of the waiting jobs.
        """
        with self._context.database.read() as connection:
            seen = instances.newest_driver(connection)
            is_needed = instances.is_driver_needed(
                connection, _SHARED if self._is_shared else _ALONE
            )
        is_wanted = is_needed or self._is_shared
        if seen.number == 0 or seen.ended_at is not None:
            if is_wanted and self._may_begin(seen):
                self._submit(self._number(seen))
                self._forget(seen)
        else:
            self._watch(seen)
        return is_needed

    def _may_begin(self, seen: DriverRow) -> bool:
        if seen.ended_at is None:
            return True
        return self._context.clock() - seen.ended_at >= timedelta(seconds=_backoff(seen.failures))

    def _number(self, seen: DriverRow) -> DriverRow:
        """Assign the next number, and return the newest record: that of another instance, if it was faster."""
        with self._context.database.write() as connection:
            instances.begin_driver(connection, seen, self._context.clock())
            newest = instances.newest_driver(connection)
        assert newest.number > seen.number
        return newest

    def _submit(self, seen: DriverRow) -> None:
        try:
            self._context.driver_launcher.submit(self._submission(seen.number))
        except LauncherRejected as error:
            self._end(seen, f"refused: {error}", is_failure=True)
            raise
        except LauncherUnavailable as error:
            self._set_unavailable(seen, f"waiting: {error}")
            raise
        with self._context.database.read() as connection:
            is_newest = instances.newest_driver(connection).number == seen.number
        if not is_newest:
            # This instance was delayed, and another one has submitted the next driver since.
            self._context.driver_launcher.stop(self._id(seen.number))

    def _watch(self, seen: DriverRow) -> None:
        try:
            status = status_of(self._context.driver_launcher, self._id(seen.number))
        except LauncherUnavailable as error:
            self._set_unavailable(seen, f"waiting: {error}")
            raise
        if status.state == LaunchState.UNKNOWN and seen.launched_at is None:
            # It was numbered and not submitted, or the launcher has lost it. The launcher starts an id once.
            self._submit(seen)
        elif status.state == LaunchState.QUEUED:
            # For as long as the queue takes: no preparation is late.
            message = f"{_WHAT} is {status.message or 'queued'}"
            self._set_unavailable(seen, message, launched_at=None)
        elif status.state == LaunchState.PENDING:
            self._change(seen, message=f"waiting: the cluster has not started {_WHAT}")
        elif not status.has_ended:
            self._change(seen, launched_at=seen.launched_at or self._context.clock(), message=None)
        else:
            self._end(seen, _words(status), is_failure=status.state != LaunchState.SUCCEEDED)

    def _end(self, seen: DriverRow, words: str, *, is_failure: bool) -> None:
        now = self._context.clock()
        ran = timedelta(0) if seen.launched_at is None else now - seen.launched_at
        failures = 0 if not is_failure or ran >= _LONG_RUN else seen.failures + 1
        message = None
        if is_failure:
            seconds = _backoff(failures)
            message = f"waiting: {_WHAT} ended ({words}); the next one starts in {seconds:g} s"
            logger.warning("%s ended: %s", self._id(seen.number), words)
        self._change(seen, ended_at=now, failures=failures, message=message)

    def _set_unavailable(self, seen: DriverRow, message: str, **changes: object) -> None:
        changes["unavailable_since"] = seen.unavailable_since or self._context.clock()
        changes["message"] = message
        self._store(seen, changes)

    def _change(self, seen: DriverRow, **changes: object) -> None:
        """Store changes after a reply of the launcher."""
        self._store(seen, changes | {"unavailable_since": None})

    def _store(self, seen: DriverRow, changes: dict[str, object]) -> None:
        if all(getattr(seen, name) == value for name, value in changes.items()):
            return
        with self._context.database.write() as connection:
            instances.change_driver(connection, seen, changes)
        # Jobs show the message, and their deadlines follow it.
        self._wake()

    def _forget(self, ended: DriverRow) -> None:
        """Remove the records that the cluster keeps of the last but one driver."""
        if ended.number > 1:
            self._context.driver_launcher.forget(self._id(ended.number - 1))

    def _id(self, number: int) -> str:
        return driver_id(self._context.store.uri, number)

    def _submission(self, number: int) -> Submission:
        settings = self._context.settings
        command = ["python", "-m", "workers.driver", "--store", self._context.store.uri]
        if self._is_shared:
            # Its ranks reserve their resources themselves, and may end before it does.
            idle = ["--ranks-idle-seconds", f"{settings.ranks_idle_seconds:g}"]
            ranks, gpus, memory = 0, 0.0, 0
            command += [*rank_options(settings), *idle]
        else:
            ranks, gpus = settings.prepare_workers, settings.prepare_gpus_per_worker
            memory = settings.prepare_memory_per_pod
            command += ["--idle-seconds", f"{_JOB_IDLE_SECONDS}"]
        return Submission(
            id=self._id(number),
            command=command,
            labels={"cmcl/driver": str(number)},
            queue=settings.queue_of(DEFAULT_OWNER),
            ranks=ranks,
            min_ranks=ranks,
            gpus_per_rank=gpus,
            memory_per_pod=memory,
        )


def driver_id(store_uri: str, number: int) -> str:
    """Return the id of a driver's submission. It differs between installations that share a cluster."""
    return f"driver-{hashlib.sha256(store_uri.encode()).hexdigest()[:8]}-{number}"


def _backoff(failures: int) -> float:
    return min(2.0**failures, _LONGEST_BACKOFF_SECONDS) if failures else 0.0


def _words(status: LaunchStatus) -> str:
    return f"{status.state}: {status.message}" if status.message else status.state.value
