"""The thread that keeps collections in the store small: merges segments, removes what counts no more.

Any replica may do it, several at once: the second finds nothing left, or is told that it was overtaken.
"""

import logging
import queue
import random
import threading
import time
from datetime import UTC, datetime

from cmcl.contract.errors import WorkerError
from workers.serve.search.stored import ledger
from workers.serve.search.stored.compaction import Superseded, compact, is_due
from workers.serve.search.stored.revision import Revision
from workers.serve.search.stored.sweep import sweep
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

# With some chance in it, so that replicas that started together do not all come at once.
_SWEEP_SECONDS = 600.0


class Housekeeper:
    """Whoever writes tells it what came of that; it looks at everything from time to time."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._noticed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="collections housekeeper", daemon=True
        )

    def start(self) -> None:
        """Work in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait until it is gone."""
        self._stopping.set()
        self._noticed.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether somebody keeps house."""
        return self._thread.is_alive()

    def notice(self, revision: Revision) -> None:
        """This was written. From any thread."""
        if is_due(revision) and revision.name not in self._waiting:
            self._waiting.add(revision.name)
            self._noticed.put(revision.name)

    def tidy(self, name: str) -> None:
        """Merge the collection's segments if there are too many. Raises StorageUnavailable."""
        head = ledger.newest(self._store, name)
        if head is None or not is_due(head):
            return
        try:
            compact(self._store, head)
        except Superseded:
            logger.info("collection %s was changed by others before it was merged", name)

    def _run(self) -> None:
        due = _next_sweep()
        while not self._stopping.is_set():
            try:
                name = self._noticed.get(timeout=max(due - time.monotonic(), 0))
            except queue.Empty:
                self._sweep_all()
                due = _next_sweep()
            else:
                self._tidy_safely(name)

    def _tidy_safely(self, name: str | None) -> None:
        if name is None:
            return
        self._waiting.discard(name)
        try:
            self.tidy(name)
        except WorkerError as error:
            logger.warning("collection %s is not merged now: %s", name, error)
        except Exception:
            # A bug, but one that must not leave all collections as they are for ever.
            logger.exception("collection %s cannot be merged", name)

    def _sweep_all(self) -> None:
        try:
            names = ledger.collection_names(self._store)
        except WorkerError as error:
            logger.warning("collections are not swept now: %s", error)
            return
        for name in names:
            self.sweep_safely(name)

    def sweep_safely(self, name: str) -> None:
        """Tidy and sweep one. Never raises: what one collection meets is no other's trouble."""
        try:
            self.tidy(name)
            sweep(self._store, name, datetime.now(UTC))
        except WorkerError as error:
            logger.warning("collection %s is not swept now: %s", name, error)
        except Exception:
            logger.exception("collection %s cannot be swept", name)


def _next_sweep() -> float:
    return time.monotonic() + random.uniform(0.5, 1.5) * _SWEEP_SECONDS  # noqa: S311
