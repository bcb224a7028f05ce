"""Maintenance of collections in the store: compaction of segments, and removal of what no longer counts.

Any replica may do it, several at once: the second finds nothing left, or is superseded.

The sweep removes, after a time of grace: revisions but the last few; segments that the newest revision does not
name and that are older than any write or read can take, as they were dropped or their writer died before it named
them; and the whole of a collection that was deleted so long ago, so that names are not followed permanently.
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
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections import revision_log
from workers.serve.collections.compaction import GRACE, Superseded, compact, is_due, still_kept
from workers.serve.collections.revision_log import Revision
from workers.serve.collections.segments import age_seconds

logger = logging.getLogger(__name__)

# With jitter, so that replicas that started together do not all sweep at once.
_SWEEP_SECONDS = 600.0


class Maintenance:
    """Compacts collections after writes, and sweeps all of them periodically."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._noticed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="collections housekeeper", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and join it."""
        self._stopping.set()
        self._noticed.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def notice(self, revision: Revision) -> None:
        """Note a new revision. From any thread."""
        if is_due(revision) and revision.name not in self._waiting:
            self._waiting.add(revision.name)
            self._noticed.put(revision.name)

    def compact_if_due(self, name: str) -> None:
        """Compact the collection if it has too many segments. Raises StorageUnavailable."""
        head = revision_log.newest(self._store, name)
        if head is None or not is_due(head):
            return
        try:
            compact(self._store, head)
        except Superseded:
            logger.info(
                "collection %s was changed by another replica before it was compacted", name
            )

    def _run(self) -> None:
        due = _next_sweep()
        while not self._stopping.is_set():
            try:
                name = self._noticed.get(timeout=max(due - time.monotonic(), 0))
            except queue.Empty:
                self._sweep_all()
                due = _next_sweep()
            else:
                self._compact_safely(name)

    def _compact_safely(self, name: str | None) -> None:
        if name is None:
            return
        self._waiting.discard(name)
        try:
            self.compact_if_due(name)
        except WorkerError as error:
            logger.warning("compaction of collection %s failed, will retry: %s", name, error)
        except Exception:
            # A bug: the other collections must be compacted anyway.
            logger.exception("compaction of collection %s failed", name)

    def _sweep_all(self) -> None:
        try:
            names = revision_log.collection_names(self._store)
        except WorkerError as error:
            logger.warning("the sweep of collections failed, will retry: %s", error)
            return
        for name in names:
            self.sweep_safely(name)

    def sweep_safely(self, name: str) -> None:
        """Compact and sweep one collection. Never raises, so that the others are swept."""
        try:
            self.compact_if_due(name)
            sweep(self._store, name, datetime.now(UTC))
        except WorkerError as error:
            logger.warning("the sweep of collection %s failed, will retry: %s", name, error)
        except Exception:
            logger.exception("the sweep of collection %s failed", name)


def _next_sweep() -> float:
    return time.monotonic() + random.uniform(0.5, 1.5) * _SWEEP_SECONDS  # noqa: S311


def sweep(store: ObjectStore, name: str, now: datetime) -> int:
    """Remove what no longer counts. Returns how many objects. Raises StorageUnavailable; idempotent."""
    head = revision_log.newest(store, name)
    old = _leftover_keys(store, name, now) if head is None else _old_revisions(store, head)
    gone = [*old, *_unnamed_segments(store, name, head, now)]
    for key in gone:
        store.delete(key)
    return len(gone) + (_freed(store, head, now) if head is not None else 0)


def _freed(store: ObjectStore, head: Revision, now: datetime) -> int:
    """Free the name of a collection that was deleted long ago. Returns how many revisions were removed."""
    if not head.deleted or now - head.changed_at <= GRACE:
        return 0
    if head.frees_name:  # Another sweep began, and died.
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
    # Before the mark: a writer that finds the name free must find where its numbers continue.
    _keep_number(store, mark.revision)
    try:
        store.create(
            layout.collection_revision(mark.name, mark.revision), mark.model_dump_json().encode()
        )
    except ObjectExists:
        return 0  # The name is used again, or another replica sweeps.
    return revision_log.free(store, mark)


def _keep_number(store: ObjectStore, number: int) -> None:
    """Store the number from which a freed name continues; the highest of all is enough."""
    try:
        store.create(layout.collection_number(number), b"")
    except ObjectExists:
        pass  # Another replica stored it.
    highest = revision_log.highest_freed(store)
    for key in list(store.keys(layout.collection_numbers())):
        if key < layout.collection_number(highest):
            store.delete(key)


def _leftover_keys(store: ObjectStore, name: str, now: datetime) -> Iterator[str]:
    """Revisions that a dead sweep, or a writer that slept, left behind where no revision counts.

    By their age, as the name may be taken at this moment.
    """
    for number in revision_log.revision_numbers(store, name):
        try:
            changed_at = revision_log.read_revision(store, name, number).changed_at
        except ObjectNotFound:
            continue  # Another replica sweeps as well.
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
