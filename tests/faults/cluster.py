"""A cluster whose reported states and processes can differ, as after a failover.

`FakeLauncher` holds the state that the head reports; `alive` holds the running submissions.
"""

from datetime import datetime

from service.core.clock import Clock
from service.launchers.port import LaunchState, Submission
from tests.fakes.launcher import FakeLauncher


class Cluster(FakeLauncher):
    """Accepts submissions; the test sets when each of them runs and how it ends."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        # When each was stopped for the first time.
        self.stopped_at: dict[str, datetime] = {}
        self.alive: list[str] = []
        self.ever: list[str] = []
        self.stubborn: set[str] = set()

    def submit(self, submission: Submission) -> None:
        """See the port. A submission whose record was lost runs a second time."""
        is_known = submission.id in self.commands
        super().submit(submission)
        if is_known:
            return
        self.end(submission.id, LaunchState.PENDING)
        self.ever.append(submission.id)
        if submission.id not in self.alive:
            self.alive.append(submission.id)

    def stop(self, submission_id: str) -> None:
        """See the port. A stubborn process continues although the head reports its end."""
        super().stop(submission_id)
        self.stopped_at.setdefault(submission_id, self._clock())
        if submission_id in self.commands and submission_id not in self.stubborn:
            self.vanish(submission_id)

    def word(self, submission_id: str) -> LaunchState:
        """The state that the head has on record, even while it is unreachable."""
        status = self._statuses.get(submission_id)
        return LaunchState.UNKNOWN if status is None else status.state

    def vanish(self, submission_id: str) -> None:
        """End the process without a report to the head."""
        if submission_id in self.alive:
            self.alive.remove(submission_id)

    def die(self, submission_id: str, state: LaunchState, message: str = "") -> None:
        """End the process; the head reports the state, if it still has the record."""
        self.vanish(submission_id)
        self.claim(submission_id, state, message)

    def claim(self, submission_id: str, state: LaunchState, message: str = "") -> None:
        """Change the state that the head reports, without an effect on the process."""
        if submission_id in self.commands:
            self.end(submission_id, state, message)

    def restart_head(self) -> None:
        """Lose the head's table; running processes continue."""
        for submission_id in list(self.commands):
            self.lose(submission_id)
        self.commands.clear()

    def heal(self) -> None:
        """Make the head reachable: it accepts everything, and stops what should stop."""
        self.is_down = self.refuses = False
        self.stubborn.clear()
