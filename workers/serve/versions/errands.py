"""Work that repeats, in a few threads: of each name one at a time, and no failure ends anything."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cmcl.contract.errors import WorkerError

logger = logging.getLogger(__name__)


class Errands:
    """Runs each errand that was begun since it last started, so that nothing is missed.

    What takes long holds up its own name and one thread, and nobody else while others are free. What
    is begun again while it runs goes to the end of the queue, however often that happens.
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        """`threads` are its own from now on, and end with it."""
        self._threads = threads
        # By a token: an executor that cannot start a thread raises and keeps what it was given, which
        # must not run beside the errand that is begun in its place.
        self._waiting: dict[str, object] = {}
        self._running: set[str] = set()
        self._again: dict[str, Callable[[], None]] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._complaints: dict[str, str] = {}

    def begin(self, name: str, errand: Callable[[], None]) -> None:
        """Run it soon; if it is running now, once more after that.

        Raises RuntimeError where no thread can be started.
        """
        with self._changed:
            if self._closed:
                return
            if name in self._running:
                self._again[name] = errand
            elif name not in self._waiting:
                self._enqueue(name, errand)

    def wait(self) -> None:
        """Until nothing runs, and nothing waits for that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running and not self._waiting)

    def close(self) -> None:
        """Begin nothing more. Does not wait: what hangs in a store may hang for long."""
        with self._changed:
            self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _enqueue(self, name: str, errand: Callable[[], None]) -> None:
        turn = self._waiting[name] = object()
        try:
            self._threads.submit(self._run, name, turn, errand)
        except RuntimeError:
            # Otherwise this name would count as waiting for ever.
            del self._waiting[name]
            raise

    def _run(self, name: str, turn: object, errand: Callable[[], None]) -> None:
        with self._changed:
            if self._waiting.get(name) is not turn:
                return
            del self._waiting[name]
            self._running.add(name)
        self._attempt(name, errand)
        with self._changed:
            self._running.discard(name)
            self._changed.notify_all()
            again = self._again.pop(name, None)
            if again is not None and not self._closed:
                self._enqueue(name, again)

    def _attempt(self, name: str, errand: Callable[[], None]) -> None:
        try:
            errand()
        except WorkerError as error:
            self._complain(name, error)
        except Exception:
            # A bug, but one that must not freeze this replica on today's versions for ever.
            logger.exception("a look at %s failed", name)
        else:
            self._complaints.pop(name, None)

    def _complain(self, about: str, error: WorkerError) -> None:
        """Log once and not with every look: a store that is down for an hour fills no disk."""
        if self._complaints.get(about) != str(error):
            self._complaints[about] = str(error)
            logger.warning("%s cannot be read, what answers goes on: %s", about, error)
