"""Attempts that the driver on a Ray cluster trains with resident ranks: requests and outcomes in object storage.

A listing of the requests shows what has not ended. An outcome is read by name, so that old ones cost nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from cmcl.contract.errors import ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.contract.job import AttemptOutcome
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from service.launchers.port import (
    LOG_LINES,
    ClusterResources,
    Launcher,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    end_of_log,
    shortened,
    status_of,
)

_RUNS = LaunchStatus(LaunchState.RUNNING)
_WAITS = LaunchStatus(LaunchState.PENDING, "waiting: the driver on the cluster is starting")
_UNKNOWN = LaunchStatus(LaunchState.UNKNOWN, "there is neither a request nor an outcome")


class DriverLauncher:
    """Launcher of attempts through the driver, which another launcher, `processes`, runs.

    `driver` returns the submission id of the newest driver. The next one takes up what a driver has left.
    """

    def __init__(self, store: ObjectStore, processes: Launcher, driver: Callable[[], str]) -> None:
        self._store = store
        self._processes = processes
        self._driver = driver
        # Those of the last list; an outcome is written once.
        self._outcomes: dict[str, AttemptOutcome] = {}

    def submit(self, submission: Submission) -> None:
        """See the port."""
        if submission.attempt is None:
            raise ValueError(f"{submission.id} is no attempt: the driver trains nothing else")
        with _translated():
            if self._outcome(submission.id) is None:
                text = submission.attempt.model_dump_json().encode()
                self._store.put(layout.attempt_request(submission.id), text)

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """See the port."""
        with _translated():
            requested = set(self._store.keys(layout.attempts()))
            names = {name: layout.attempt_request(name) in requested for name in submission_ids}
            ended = [name for name, is_requested in names.items() if not is_requested]
            found = {name: self._outcomes.get(name) or self._outcome(name) for name in ended}
        self._outcomes = {name: outcome for name, outcome in found.items() if outcome is not None}
        waiting = self._requested() if requested else _WAITS
        return {name: waiting if names[name] else _status(found[name]) for name in names}

    def stop(self, submission_id: str) -> None:
        """See the port."""
        with _translated():
            if not self._is_requested(submission_id):
                return
            try:
                text = AttemptOutcome(state="stopped").model_dump_json().encode()
                self._store.create(layout.attempt_outcome(submission_id), text)
            except ObjectExists:
                pass  # It has ended by itself.
            self._store.delete(layout.attempt_request(submission_id))

    def forget(self, submission_id: str) -> None:
        """See the port."""
        with _translated():
            if not self._is_requested(submission_id):
                self._store.delete(layout.attempt_outcome(submission_id))
                self._outcomes.pop(submission_id, None)

    def log(self, submission_id: str) -> str:
        """Return the reason of a failure, with the traceback of a rank.

        The log of the driver has lines of other owners.
        """
        with _translated():
            outcome = self._outcome(submission_id)
        lines = outcome.message.splitlines(keepends=True) if outcome is not None else []
        return end_of_log(line.encode() for line in lines[-LOG_LINES:])

    def resources(self) -> ClusterResources | None:
        """See the port."""
        return self._processes.resources()

    def _requested(self) -> LaunchStatus:
        """The status of attempts without an outcome: they run while a driver does."""
        driver = status_of(self._processes, self._driver())
        return _RUNS if driver.state == LaunchState.RUNNING else _WAITS

    def _is_requested(self, submission_id: str) -> bool:
        try:
            self._store.size(layout.attempt_request(submission_id))
        except ObjectNotFound:
            return False
        return True

    def _outcome(self, submission_id: str) -> AttemptOutcome | None:
        try:
            text = self._store.read(layout.attempt_outcome(submission_id))
        except ObjectNotFound:
            return None
        try:
            return AttemptOutcome.model_validate_json(text)
        except ValidationError as error:
            message = f"the outcome cannot be read, perhaps it is of another release: {error}"
            return AttemptOutcome(state="failed", message=message)


def _status(outcome: AttemptOutcome | None) -> LaunchStatus:
    if outcome is None:
        return _UNKNOWN
    return LaunchStatus(LaunchState(outcome.state), shortened(outcome.message))


@contextmanager
def _translated() -> Iterator[None]:
    """Translate errors of the store to the port's."""
    try:
        yield
    except StorageUnavailable as error:
        raise LauncherUnavailable(f"requests of attempts: {error}") from error
