"""The thread that keeps collections in the store small: merges segments, removes what counts no more.

Any replica may do it, several at once: the second finds nothing left, or is told that it was overtaken.
"""

import logging
import queue
import random
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from cmcl.contract.errors import ObjectExists, ObjectNotFound, WorkerError
from workers.serve.collections import revision_log
from workers.serve.collections.compaction import GRACE, Superseded, compact, is_due, still_kept
from workers.serve.collections.revision_log import Revision
from workers.serve.collections.segments import age_seconds
from workers.storage import layout
from workers.storage.port import ObjectStore

logger = logging.getLogger(__name__)

# With some chance in it, so that replicas that started together do not all come at once.
_SWEEP_SECONDS = 600.0


class Maintenance:
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
        head = revision_log.newest(self._store, name)
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
            names = revision_log.collection_names(self._store)
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


def sweep(store: ObjectStore, name: str, now: datetime) -> int:
    """How many objects were removed. Raises StorageUnavailable; doing it twice is harmless."""
    head = revision_log.newest(store, name)
    old = _left_behind(store, name, now) if head is None else _old_revisions(store, head)
    gone = [*old, *_unnamed_segments(store, name, head, now)]
    for key in gone:
        store.delete(key)
    return len(gone) + (_freed(store, head, now) if head is not None else 0)


def _freed(store: ObjectStore, head: Revision, now: datetime) -> int:
    """How many revisions went with their name."""
    if not head.deleted or now - head.changed_at <= GRACE:
        return 0
    if head.frees_name:  # Somebody began, and died.
        return revision_log.free(store, head)
    mark = head.model_copy(
        update={
            "revision": head.revision + 1,
            "frees_name": True,
            "dropped": (),
            "parent": head.change,
            "change": uuid.uuid4().hex,
        }
    )
    # Before the mark: whoever finds the name free must find where its numbers go on.
    _keep_number(store, mark.revision)
    try:
        store.create(
            layout.collection_revision(mark.name, mark.revision), mark.model_dump_json().encode()
        )
    except ObjectExists:
        return 0  # The name is used again, or somebody else sweeps.
    return revision_log.free(store, mark)


def _keep_number(store: ObjectStore, number: int) -> None:
    """The highest of all is enough."""
    try:
        store.create(layout.collection_number(number), b"")
    except ObjectExists:
        pass  # As good as if it were ours.
    highest = revision_log.highest_freed(store)
    for key in list(store.keys(layout.collection_numbers())):
        if key < layout.collection_number(highest):
            store.delete(key)


def _left_behind(store: ObjectStore, name: str, now: datetime) -> Iterator[str]:
    """Where no revision counts: what whoever freed the name, or slept meanwhile, did not remove.

    By its age, as somebody may be taking the name at this moment.
    """
    for number in revision_log.revision_numbers(store, name):
        try:
            changed_at = revision_log.read_revision(store, name, number).changed_at
        except ObjectNotFound:
            continue  # Others sweep as well.
        if now - changed_at > GRACE:
            yield layout.collection_revision(name, number)


def _old_revisions(store: ObjectStore, head: Revision) -> list[str]:
    newest_to_go = head.revision - revision_log.KEPT_REVISIONS
    numbers = revision_log.revision_numbers(store, head.name)
    return [layout.collection_revision(head.name, each) for each in numbers if each <= newest_to_go]


def _unnamed_segments(
    store: ObjectStore, name: str, head: Revision | None, now: datetime
) -> list[str]:
    named: set[str] = set()
    if head is not None:
        named |= {segment.name for segment in head.segments}
        named |= {dropped.name for dropped in still_kept(head, now)}
    prefix = layout.collection_segments(name)
    return [
        key
        for key in store.keys(prefix)
        if (segment := key.removeprefix(prefix)) not in named
        and age_seconds(segment, now.timestamp()) > GRACE.total_seconds()
    ]
