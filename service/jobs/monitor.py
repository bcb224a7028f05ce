"""Watches all running attempts at once: one listing of object storage and one of the launcher show their changes.

So what an attempt costs does not grow with how often it is looked at. Progress is stored here, many in one transaction.
All else is a step of the model's job: this loop only wakes the model (`watch`).
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cmcl.contract.errors import ObjectNotFound, StorageError, StorageUnavailable
from cmcl.contract.job import Progress
from cmcl.storage.running import Shown, read_progress, read_running
from service.context import Context
from service.core.clock import steady
from service.core.errors import DatabaseUnavailable
from service.core.loops import OutageLog, PeriodicLoop
from service.database.queries.jobs import (
    Report,
    RunningAttempt,
    running_attempts,
    store_progress,
    stored_progress,
)
from service.jobs.workqueue import Key, Work, WorkQueue
from service.launchers.port import LauncherUnavailable, LaunchState, LaunchStatus

logger = logging.getLogger(__name__)

_NOTHING = Shown()


@dataclass(frozen=True)
class _Seen:
    """The progress that was last seen of an attempt.

    `note`: that of the progress with `note_digest`. `problem`: why a later note could not be read.
    """

    shown: Shown = _NOTHING
    note: str | None = None
    problem: str = ""


class AttemptMonitor(PeriodicLoop):
    """Looks at the running attempts of the models that this instance holds the leases of."""

    name = "monitor"
    outages = (DatabaseUnavailable,)
    outage_message = "running attempts are not watched; will retry"
    pause_seconds = 0.2
    stale_seconds = 120.0

    def __init__(self, context: Context, instance: str, queue: WorkQueue) -> None:
        super().__init__()
        self._context = context
        self._instance = instance
        self._queue = queue
        self._now = steady(context.clock)
        # By submission id, of the attempts that ran at the last look: progress, and states at the launcher.
        self._seen: dict[str, _Seen] = {}
        self._states: dict[str, LaunchState | None] = {}
        # Those attempts that have shown their end.
        self._ended: frozenset[str] = frozenset()
        self._outage = OutageLog(logger, self.outage_message)
        self._launcher_outage = OutageLog(logger, "the launcher does not list attempts; will retry")
        self._looked_at = self._seconds()

    def step(self, stop: threading.Event) -> float:
        began, tuning = self._now(), self._context.tuning
        interval = tuning.watch_seconds if self.look() else tuning.launcher_seconds
        # The pace is even, but a look that takes long is followed by a pause of half the interval.
        return max(interval / 2, interval - (self._now() - began))

    def problem(self) -> str | None:
        """See Loop: a look that fails does not count."""
        seconds = self._seconds() - self._looked_at
        if seconds > self.stale_seconds:
            return f"running attempts have not been looked at for {seconds:.0f} s"
        return super().problem()

    def shows_end(self, attempt: str) -> bool:
        """Whether the attempt has shown that it has written a candidate, a result or a failure. Any thread may call this."""
        return attempt in self._ended

    def look(self) -> bool:
        """Store new progress, and wake the models of attempts that changed otherwise. Returns whether any attempt runs.

        Raises DatabaseUnavailable.

        Attempts that have ended come first: a candidate waits neither for the progress of others nor for the launcher.
        """
        with self._context.database.read() as connection:
            attempts = running_attempts(connection, self._instance)
        try:
            # Without attempts, nothing is listed.
            shown = read_running(self._context.store) if attempts else {}
            self._wake_ended(attempts, shown)
            self._store_progress(attempts, shown)
        except StorageUnavailable as error:
            self._outage.failed(error)
            return False
        self._wake_changed(attempts)
        self._outage.recovered()
        self._looked_at = self._seconds()
        return bool(attempts)

    def _wake_ended(self, attempts: list[RunningAttempt], shown: Mapping[str, Shown]) -> None:
        """Wake the models of attempts that have shown their end since the last look."""
        ended = [each for each in attempts if shown.get(each.submission_id, _NOTHING).has_ended]
        new = [each for each in ended if each.submission_id not in self._ended]
        try:
            # Once their jobs have moved on, no progress is stored.
            self._store_progress(new, shown)
        except DatabaseUnavailable:
            # Their jobs could not be moved either: the next look stores it, and then wakes them.
            raise
        except Exception:
            # A candidate does not wait for a progress that cannot be stored.
            logger.exception("the last progress of ended attempts was not stored")
        # Before the models are woken: their steps ask for it.
        self._ended = frozenset(each.submission_id for each in ended)
        for attempt in new:
            self._queue.add(Key(attempt.model, Work.JOBS))

    def _wake_changed(self, attempts: list[RunningAttempt]) -> None:
        """Wake the models of attempts whose state at the launcher has changed, or that are seen for the first time."""
        statuses, states = self._statuses(attempts), dict[str, LaunchState | None]()
        for attempt in attempts:
            name, key = attempt.submission_id, Key(attempt.model, Work.JOBS)
            before, status = self._states.get(name), statuses.get(name)
            states[name] = before if status is None else status.state
            if name not in self._states:
                # After a start, that is each of them.
                self._queue.add_with_low_priority(key)
            elif states[name] != before:
                self._queue.add(key)
        self._states = states
        self._seen = {name: self._seen[name] for name in states}

    def _store_progress(self, attempts: list[RunningAttempt], shown: Mapping[str, Shown]) -> None:
        """Store the progress of these attempts that is new, in one transaction."""
        known = self._known(attempts)
        seen, reports = dict[str, _Seen](), list[Report]()
        for attempt in attempts:
            name = attempt.submission_id
            before = self._seen.get(name, _Seen())
            now, progress = _Seen(shown.get(name, _NOTHING), before.note), None
            if now.shown.name not in ("", before.shown.name):
                now, progress = self._progress(name, now, before)
            if progress is not None and progress != known.get(name):
                reports.append(Report(attempt, progress))
            seen[name] = now
        if reports:
            moment = self._context.clock()
            with self._context.database.write() as connection:
                store_progress(connection, reports, moment)
        self._seen |= seen

    def _known(self, attempts: list[RunningAttempt]) -> dict[str, Progress]:
        """Progress that is stored already, of attempts that are seen for the first time.

        Another instance, or this one before a restart, has stored it: it is no sign of life now.
        """
        new = [each for each in attempts if each.submission_id not in self._seen]
        if not new:
            return {}
        with self._context.database.read() as connection:
            return stored_progress(connection, new)

    def _progress(self, name: str, now: _Seen, before: _Seen) -> tuple[_Seen, Progress | None]:
        """The progress that an attempt shows, with its note, which is read when it is another one.

        A note that cannot be read is read again at the next look, and delays the progress of no other attempt.
        """
        progress = now.shown.progress()
        if progress is None:
            logger.warning("the progress of %s cannot be read: %s", name, now.shown.name)
            return now, None
        if not now.shown.note_digest:
            return replace(now, note=None), progress
        if now.shown.note_digest != before.shown.note_digest:
            try:
                read = read_progress(self._context.store, name, now.shown)
            except ObjectNotFound:
                # Replaced since it was listed; the next listing has its successor.
                return before, None
            except StorageError as error:
                return _unread(name, before, str(error)), None
            if read is None:
                return _unread(
                    name, before, "it does not have the form of a note of this release"
                ), None
            now = replace(now, note=read.note)
        return now, progress.model_copy(update={"note": now.note})

    def _statuses(self, attempts: list[RunningAttempt]) -> Mapping[str, LaunchStatus]:
        """What the launcher reports; nothing while it does not respond, which their steps report."""
        try:
            statuses = self._context.launcher.statuses([each.submission_id for each in attempts])
        except LauncherUnavailable as error:
            self._launcher_outage.failed(error)
            return {}
        self._launcher_outage.recovered()
        return statuses


def _unread(attempt: str, before: _Seen, problem: str) -> _Seen:
    """What was seen before, with the problem of a note that was not read, which is logged once."""
    if problem != before.problem:
        logger.warning("the note of %s was not read; will retry: %s", attempt, problem)
    return replace(before, problem=problem)
