"""The follower of collections: keeps them in memory as the store and the live versions have them.

No error ends its thread: a failure is logged once, leaves the present index in place, and is retried later.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from cmcl.contract.errors import (
    DigestMismatch,
    InvalidVersion,
    ObjectNotFound,
    WorkerError,
)
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections import revision_log
from workers.serve.collections.index import GRAPH_FROM_ROWS
from workers.serve.collections.indexer import CollectionIndexer, CollectionSnapshot, same
from workers.serve.collections.revision_log import Revision
from workers.serve.telemetry import LogOnce
from workers.serve.versions.live import LiveVersions

logger = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 15.0
# Live versions are compared more often than the store is read: that costs nothing.
_SWAP_SECONDS = 0.02
# Between two polls, while indexes are being built; or as long as the first of them took.
_SHORTEST_WORK_SECONDS = 0.05
# Errors that a retry cannot help.
_DAMAGE = (DigestMismatch, InvalidVersion, ObjectNotFound)


@dataclass
class _Followed:
    """A collection, and its failures."""

    indexer: CollectionIndexer
    head: Revision | None = None
    problem: str | None = None
    is_damaged: bool = False
    failures: int = 0
    retry_at: float = 0.0


class CollectionsFollower:
    """All collections of the store in memory. `graph_from`: smaller parts are searched exactly."""

    def __init__(
        self,
        store: ObjectStore,
        live: LiveVersions,
        poll_seconds: float,
        graph_from: int = GRAPH_FROM_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._live = live
        self._poll_seconds = poll_seconds
        self._graph_from = graph_from
        self._clock = clock
        self._followed: dict[str, _Followed] = {}
        self._snapshots: Mapping[str, CollectionSnapshot] = MappingProxyType({})
        self._damaged: Mapping[str, str] = MappingProxyType({})
        self._log = LogOnce(logger, "%s is not followed, what is loaded keeps answering: %s")
        self._woken = threading.Event()
        self._loaded = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collections follower", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and join it."""
        self._stopping.set()
        self._woken.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Poll now. From any thread."""
        self._woken.set()

    def wait_loaded(self, seconds: float) -> bool:
        """Block until all collections of the first poll are searched. False after `seconds`."""
        return self._loaded.wait(seconds)

    def snapshot(self, name: str) -> CollectionSnapshot | None:
        """Return the state of a collection; None if this replica has not seen it."""
        return self._snapshots.get(name)

    def snapshots(self) -> Mapping[str, CollectionSnapshot]:
        """Return the state of each, by name, as an immutable mapping."""
        return self._snapshots

    def rows(self) -> int:
        """How many rows of all collections are searched."""
        return sum(each.index.rows for each in self._snapshots.values() if each.index is not None)

    def behind(self) -> int:
        """How many collections are not searched at their newest revision by their live version."""
        return sum(not self._is_followed(each) for each in self._snapshots.values())

    def damaged(self) -> Mapping[str, str]:
        """What is wrong, by name, with collections whose stored parts fail their checks."""
        return self._damaged

    def poll(self) -> None:
        """Poll every collection once. Raises StorageUnavailable if they cannot be listed."""
        names = revision_log.collection_names(self._store)
        for name in self._followed.keys() - set(names):
            del self._followed[name]
            self._log.recovered(f"collection {name}")
            self._put(name, None)
            self._put_damage(name, None)
        for name in names:
            if name not in self._followed:
                self._followed[name] = _Followed(
                    CollectionIndexer(self._store, self._graph_from, self._clock)
                )
            followed = self._followed[name]
            if self._clock() >= followed.retry_at:
                self._guarded(name, followed, partial(self._follow, name, followed))

    def work(self) -> bool:
        """Do one step of each index that is being built. Returns whether there are more."""
        working = [each for each in self._followed.items() if each[1].indexer.is_working]
        for name, followed in working:
            self._guarded(name, followed, partial(self._step, followed))
        return any(followed.indexer.is_working for _, followed in working)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            seen, began = self._live.all(), self._clock()
            has_polled = self._poll_safely()
            polled = self._clock()
            # Where wake-ups come as often as polls end, no index would be completed otherwise.
            busy_until = polled + max(polled - began, _SHORTEST_WORK_SECONDS)
            due = polled + self._poll_seconds
            while not self._stopping.is_set():
                # The mapping is replaced with each swap, so identity is enough.
                is_woken = self._woken.is_set() or self._live.all() is not seen
                is_due = is_woken or self._clock() >= due
                if is_due and self._clock() >= busy_until:
                    break
                if self.work():
                    continue
                if has_polled:
                    self._loaded.set()
                if is_due:
                    break
                self._woken.wait(min(_SWAP_SECONDS, max(due - self._clock(), 0)))

    def _poll_safely(self) -> bool:
        try:
            self.poll()
        except WorkerError as error:
            self._log.failed("the store", error)
            return False
        except Exception:
            # A bug: later polls must still run.
            logger.exception("polling the collections failed")
            return False
        self._log.recovered("the store")
        return True

    def _guarded(self, name: str, followed: _Followed, do: Callable[[], None]) -> None:
        """Do it, and confine a failure to this collection."""
        try:
            do()
        except WorkerError as error:
            self._log.failed(f"collection {name}", error)
            self._failed(followed, error)
        except Exception as error:
            logger.exception("collection %s failed", name)
            self._failed(followed, error)
        else:
            if not followed.indexer.is_working:
                followed.failures, followed.problem, followed.is_damaged = 0, None, False
        self._publish(name, followed)

    def _failed(self, followed: _Followed, error: Exception) -> None:
        followed.indexer.abandon()
        # Without the store's address, which callers must not see.
        followed.problem = str(error).replace(f"{self._store.uri}/", "")
        followed.is_damaged = isinstance(error, _DAMAGE)
        followed.failures += 1
        # The exponent is bounded too: 2.0 ** 1024 overflows, and a week of failures gets there.
        delay = _FIRST_DELAY_SECONDS * 2.0 ** min(followed.failures, 16)
        followed.retry_at = self._clock() + min(delay, _LONGEST_DELAY_SECONDS)

    def _follow(self, name: str, followed: _Followed) -> None:
        head = followed.head = self._newest(name, followed.head)
        live = self._live.get(head.model) if head is not None else None
        if head is None or head.deleted or live is None:
            followed.indexer.forget()
        else:
            followed.indexer.follow(head, live.version)

    def _is_followed(self, snapshot: CollectionSnapshot) -> bool:
        live, index = self._live.get(snapshot.revision.model), snapshot.index
        if live is None:
            return True  # The model has no live version.
        return (
            index is not None
            and index.revision == snapshot.revision.revision
            and same(index.version, live.version)
        )

    def _newest(self, name: str, known: Revision | None) -> Revision | None:
        if known is not None and known.revision == revision_log.newest_number(self._store, name):
            return known
        return revision_log.newest(self._store, name)

    def _step(self, followed: _Followed) -> None:
        if followed.head is not None:
            followed.indexer.step(followed.head)

    def _publish(self, name: str, followed: _Followed) -> None:
        """Publish the state in one step: a request that reads it once uses one index."""
        snapshot = None
        head = followed.head
        if head is not None and not head.deleted:
            live = self._live.get(head.model)
            width = live.version.spec.width if live is not None else None
            index, problem = followed.indexer.index, followed.problem
            snapshot = CollectionSnapshot(head, width, index, problem, followed.is_damaged)
        self._put(name, snapshot)
        damage = followed.problem if followed.is_damaged else None
        if damage != self._damaged.get(name):
            self._put_damage(name, damage)

    def _put(self, name: str, snapshot: CollectionSnapshot | None) -> None:
        if snapshot != self._snapshots.get(name):
            others = {other: each for other, each in self._snapshots.items() if other != name}
            self._snapshots = MappingProxyType(others | ({name: snapshot} if snapshot else {}))

    def _put_damage(self, name: str, damage: str | None) -> None:
        others = {other: each for other, each in self._damaged.items() if other != name}
        self._damaged = MappingProxyType(others | ({name: damage} if damage else {}))
