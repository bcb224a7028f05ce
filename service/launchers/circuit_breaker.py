"""A launcher that does not answer is asked by one caller in a while, not by all of them in turn.

The reconciler looks after all models in one thread. Where a cluster is down, it hears so at once; but
where a cluster hangs, each call costs half a minute, and a hundred running jobs would keep everything
else, such as storing and promoting versions that are complete, waiting for an hour.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.launchers.port import Launcher, LauncherUnavailable, LaunchStatus, Submission

# A call that failed after so long was one that hung.
_SLOW_SECONDS = 2.0
_PAUSE_SECONDS = 15.0


class CircuitBreaker:
    """A launcher in front of another one; see the port. `seconds` is a clock that only goes forward."""

    def __init__(self, launcher: Launcher, seconds: Callable[[], float] = time.monotonic) -> None:
        self._launcher = launcher
        self._seconds = seconds
        self._left_alone_until = float("-inf")
        self._why = ""

    def submit(self, submission: Submission) -> None:
        """See the port."""
        with self._watched():
            self._launcher.submit(submission)

    def status(self, submission_id: str) -> LaunchStatus:
        """See the port."""
        with self._watched():
            return self._launcher.status(submission_id)

    def stop(self, submission_id: str) -> None:
        """See the port."""
        with self._watched():
            self._launcher.stop(submission_id)

    def forget(self, submission_id: str) -> None:
        """See the port."""
        with self._watched():
            self._launcher.forget(submission_id)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        began = self._seconds()
        if began < self._left_alone_until:
            raise LauncherUnavailable(self._why)
        try:
            yield
        except LauncherUnavailable as error:
            now = self._seconds()
            if now - began >= _SLOW_SECONDS:
                self._left_alone_until, self._why = now + _PAUSE_SECONDS, str(error)
            raise
