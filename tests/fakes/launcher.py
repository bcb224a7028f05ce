"""A launcher that runs nothing: the test says what becomes of each submission."""

from service.launchers.port import (
    LauncherRefused,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
)


class FakeLauncher:
    """Keeps submissions in memory. It outlives control planes, as a cluster does."""

    def __init__(self) -> None:
        self.commands: dict[str, list[str]] = {}
        self.submissions: dict[str, Submission] = {}
        self.stopped: list[str] = []
        self.is_down = False
        self.refuses = False
        # A cluster that is full takes a command and starts it later.
        self.starts_at_once = True
        # A stop is a request: the attempt may take its time to end.
        self.stops_at_once = True
        self._statuses: dict[str, LaunchStatus] = {}

    def submit(self, submission: Submission) -> None:
        """See the port."""
        self._answer()
        if submission.id in self.commands:
            return
        if self.refuses:
            raise LauncherRefused("no room (on purpose)")
        self.commands[submission.id] = list(submission.command)
        self.submissions[submission.id] = submission
        state = LaunchState.RUNNING if self.starts_at_once else LaunchState.PENDING
        self._statuses[submission.id] = LaunchStatus(state)

    def status(self, submission_id: str) -> LaunchStatus:
        """See the port."""
        self._answer()
        return self._statuses.get(submission_id, LaunchStatus(LaunchState.UNKNOWN))

    def stop(self, submission_id: str) -> None:
        """See the port."""
        self._answer()
        self.stopped.append(submission_id)
        if self.stops_at_once and not self.status(submission_id).has_ended:
            self.end(submission_id, LaunchState.STOPPED)

    def end(self, submission_id: str, state: LaunchState, message: str = "") -> None:
        """What became of it."""
        self._statuses[submission_id] = LaunchStatus(state, message)

    def forget(self, submission_id: str) -> None:
        """See the port."""
        self._answer()
        if self.status(submission_id).has_ended:
            self.lose(submission_id)

    def lose(self, submission_id: str) -> None:
        """As a cluster that lost its table of jobs."""
        self._statuses.pop(submission_id, None)

    def running(self) -> list[str]:
        """Ids of what runs."""
        return [name for name, status in self._statuses.items() if not status.has_ended]

    def _answer(self) -> None:
        if self.is_down:
            raise LauncherUnavailable("nobody answers (on purpose)")
