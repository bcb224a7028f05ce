"""A cluster whose word and whose processes are two things, as they are after a failover.

`FakeLauncher` has what the head reports of a submission; `alive` has what really runs.
"""

from datetime import datetime

from service.clock import Clock
from service.launchers.port import LaunchState, Submission
from tests.fakes.launcher import FakeLauncher


class Cluster(FakeLauncher):
    """It takes submissions, and starts them when the test says so."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        # When each was stopped for the first time.
        self.told_to_stop: dict[str, datetime] = {}
        self.alive: list[str] = []
        self.ever: list[str] = []
        self.stubborn: set[str] = set()

    def submit(self, submission: Submission) -> None:
        """See the port. One whose record the head has lost runs a second time."""
        is_known = submission.id in self.commands
        super().submit(submission)
        if is_known:
            return
        self.end(submission.id, LaunchState.PENDING)
        self.ever.append(submission.id)
        if submission.id not in self.alive:
            self.alive.append(submission.id)

    def stop(self, submission_id: str) -> None:
        """See the port. A stubborn process outlives what the head says of it."""
        super().stop(submission_id)
        self.told_to_stop.setdefault(submission_id, self._clock())
        if submission_id in self.commands and submission_id not in self.stubborn:
            self.vanish(submission_id)

    def word(self, submission_id: str) -> LaunchState:
        """What the head says of it, whether it answers at the moment or not."""
        status = self._statuses.get(submission_id)
        return LaunchState.UNKNOWN if status is None else status.state

    def vanish(self, submission_id: str) -> None:
        """The process is gone; the head has not noticed."""
        if submission_id in self.alive:
            self.alive.remove(submission_id)

    def die(self, submission_id: str, state: LaunchState, message: str = "") -> None:
        """The process is gone, and the head reports how, if it still has the record."""
        self.vanish(submission_id)
        self.claim(submission_id, state, message)

    def claim(self, submission_id: str, state: LaunchState, message: str = "") -> None:
        """The head says so; the process does what it does."""
        if submission_id in self.commands:
            self.end(submission_id, state, message)

    def restart_head(self) -> None:
        """Its table is lost; what runs continues."""
        for submission_id in list(self.commands):
            self.lose(submission_id)
        self.commands.clear()

    def heal(self) -> None:
        """From now on it is up, accepts everything, and stops what should stop."""
        self.is_down = self.refuses = False
        self.stubborn.clear()
