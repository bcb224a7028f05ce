"""The threads of the reconciler: workers that process keys, and one that listens for events of other instances."""

import logging
import threading
from collections.abc import Callable

from service.core.errors import DatabaseUnavailable
from service.core.loops import HUNG_SECONDS, Loop, OutageLog, PeriodicLoop
from service.database.engine import Database
from service.database.notifications import Listener
from service.jobs.workqueue import Key, Work, WorkQueue

logger = logging.getLogger(__name__)

# Upper bound on how long a thread takes to see that the service stops.
_WAIT_SECONDS = 1.0
# A key that waits for longer than this shows that there are too few workers, or that they hang.
_LATE_SECONDS = 60.0


class Workers(Loop):
    """Threads that process the keys of the queue; its heartbeat is that of any of them."""

    name = "workqueue"

    def __init__(self, queue: WorkQueue, process: Callable[[Key], None], number: int) -> None:
        super().__init__()
        self._queue = queue
        self._process = process
        self._number = number

    def run(self, stop: threading.Event) -> None:
        """See Loop."""
        # Daemons: a call that hangs must not keep the process from exiting.
        threads = [
            threading.Thread(target=self._work, args=[stop], name=f"worker-{i}", daemon=True)
            for i in range(self._number)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def problem(self) -> str | None:
        """See Loop: also if keys wait for long although workers make progress."""
        seconds = self._queue.oldest_seconds(Work.POINTER)
        if seconds > _LATE_SECONDS:
            return (
                f"a model has waited for a worker for {seconds:.0f} s; {self._queue.depth()} wait"
            )
        return super().problem()

    def hung(self) -> str | None:
        """See Loop: also one worker that does not end."""
        longest = self._queue.longest_running()
        if longest is not None and longest[1] >= HUNG_SECONDS:
            key, seconds = longest
            return (
                f"work on the {key.work} of model {key.model!r} has not ended for {seconds:.0f} s"
            )
        return super().hung()

    def _work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            key = self._queue.get(_WAIT_SECONDS)
            if key is not None:
                self._process(key)
            self.beat()


class Notifications(PeriodicLoop):
    """Wakes models whose events other instances have committed to a shared PostgreSQL.

    It saves latency only: the resync finds what was missed.
    """

    name = "notifications"
    pause_seconds = 1.0
    starts_at_once = True

    def __init__(
        self, database: Database, wake: Callable[[str], None], resync: Callable[[], None]
    ) -> None:
        super().__init__()
        self._listener = Listener(database)
        self._wake = wake
        self._resync = resync
        self._outage = OutageLog(logger, "events of other instances are not received; will retry")

    def step(self, stop: threading.Event) -> float:
        """See PeriodicLoop."""
        if self._listener.connect():
            # Events before this moment were missed.
            self._resync()
        self._outage.recovered()
        for model in self._listener.wait(_WAIT_SECONDS):
            self._wake(model)
        return 0.0

    def report(self, error: Exception) -> None:
        """See PeriodicLoop."""
        self._listener.close()
        if isinstance(error, DatabaseUnavailable):
            self._outage.failed(error)
        else:
            super().report(error)
