"""A launcher that runs nothing: the test sets the state of each submission."""

from collections.abc import Callable, Iterable

from service.launchers.port import (
    LOG_LINES,
    ClusterResources,
    LauncherRejected,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    end_of_log,
    status_of,
)


class FakeLauncher:
    """Keeps submissions in memory. It outlives control planes, as a cluster does."""

    def __init__(self) -> None:
        self.commands: dict[str, list[str]] = {}
        self.submissions: dict[str, Submission] = {}
        self.stopped: list[str] = []
        self.is_down = False
        self.refuses = False
        # A full cluster accepts a command and starts it later.
        self.starts_at_once = True
        # A stop is a request: the attempt may end later.
        self.stops_at_once = True
        # Output of each command.
        self.logs: dict[str, str] = {}
        # None: there is room for everything.
        self.cluster: ClusterResources | None = None
        # Called by each list of statuses, which may take its time.
        self.take_time: Callable[[], None] = lambda: None
        self._statuses: dict[str, LaunchStatus] = {}

    def submit(self, submission: Submission) -> None:
        """See the port."""
        self._answer()
        if submission.id in self.commands:
            return
        if self.refuses:
            raise LauncherRejected("no room (on purpose)")
        self.commands[submission.id] = list(submission.command)
        self.submissions[submission.id] = submission
        state = LaunchState.RUNNING if self.starts_at_once else LaunchState.PENDING
        self._statuses[submission.id] = LaunchStatus(state)

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """See the port."""
        self._answer()
        self.take_time()
        unknown = LaunchStatus(LaunchState.UNKNOWN)
        return {name: self._statuses.get(name, unknown) for name in submission_ids}

    def stop(self, submission_id: str) -> None:
        """See the port."""
        self._answer()
        self.stopped.append(submission_id)
        if self.stops_at_once and not status_of(self, submission_id).has_ended:
            self.end(submission_id, LaunchState.STOPPED)

    def end(self, submission_id: str, state: LaunchState, message: str = "") -> None:
        """Set the final state of a submission."""
        self._statuses[submission_id] = LaunchStatus(state, message)

    def log(self, submission_id: str) -> str:
        """See the port."""
        self._answer()
        lines = self.logs.get(submission_id, "").splitlines(keepends=True)
        return end_of_log(line.encode() for line in lines[-LOG_LINES:])

    def resources(self) -> ClusterResources | None:
        """See the port."""
        self._answer()
        return self.cluster

    def forget(self, submission_id: str) -> None:
        """See the port."""
        self._answer()
        if status_of(self, submission_id).has_ended:
            self.lose(submission_id)

    def lose(self, submission_id: str) -> None:
        """Lose the submission, like a cluster that lost its table of jobs."""
        self._statuses.pop(submission_id, None)
        self.logs.pop(submission_id, None)

    def running(self) -> list[str]:
        """Ids of running submissions."""
        return [name for name, status in self._statuses.items() if not status.has_ended]

    def _answer(self) -> None:
        if self.is_down:
            raise LauncherUnavailable("no response (on purpose)")
