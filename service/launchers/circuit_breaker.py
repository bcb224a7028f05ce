"""Fails calls fast while a launcher hangs, except for one from time to time.

The reconciler serves all models from one thread. If a cluster is down, a call fails at once; but if it
hangs, each call takes half a minute, and a hundred running jobs would delay everything else, such as
storing and promoting complete versions, by an hour.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.launchers.port import Launcher, LauncherUnavailable, LaunchStatus, Submission

# A failed call that took longer than this was hanging.
_SLOW_SECONDS = 2.0
_PAUSE_SECONDS = 15.0


class CircuitBreaker:
    """A launcher that wraps another one; see the port. `seconds` is a monotonic clock."""

    def __init__(self, launcher: Launcher, seconds: Callable[[], float] = time.monotonic) -> None:
        self._launcher = launcher
        self._seconds = seconds
        self._open_until = float("-inf")
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
        if began < self._open_until:
            raise LauncherUnavailable(self._why)
        try:
            yield
        except LauncherUnavailable as error:
            now = self._seconds()
            if now - began >= _SLOW_SECONDS:
                self._open_until, self._why = now + _PAUSE_SECONDS, str(error)
            raise
