"""Collections as the routes use them: changes go to the store, searches to memory."""

import sys
from collections.abc import Callable, Mapping, Sequence

from cmcl.contract.errors import InvalidVersion, StorageUnavailable
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections import revision_log, writes
from workers.serve.collections.follower import CollectionsFollower
from workers.serve.collections.index import is_installed
from workers.serve.collections.indexer import CollectionSnapshot
from workers.serve.collections.maintenance import Maintenance
from workers.serve.collections.quota import CollectionsQuota
from workers.serve.collections.revision_log import Revision
from workers.serve.collections.segments import Entry
from workers.serve.settings import CollectionLimits
from workers.serve.versions.live import LiveVersions

# Where compaction does not keep up with writing, writers have to wait.
_MOST_SEGMENTS = 256

Permitted = Callable[[Revision], bool]
NO_LIMITS = CollectionLimits(*[sys.maxsize] * 4)


class TooManySegments(StorageUnavailable):
    """Writing is faster than compaction; trying again can help."""


class Collections:
    """All collections of a store. Methods that block say so; all may be called from any thread."""

    def __init__(
        self,
        store: ObjectStore,
        follower: CollectionsFollower,
        maintenance: Maintenance,
        limits: CollectionLimits = NO_LIMITS,
    ) -> None:
        self._store = store
        self._follower = follower
        self._maintenance = maintenance
        self._quota = CollectionsQuota(limits, follower.snapshots)

    def start(self) -> None:
        """Start the threads of follower and maintenance."""
        self._follower.start()
        self._maintenance.start()

    def stop(self) -> None:
        """Stop both threads and join them."""
        self._follower.stop()
        self._maintenance.stop()

    @property
    def alive(self) -> bool:
        """Whether both threads run."""
        return self._follower.alive and self._maintenance.alive

    def wake(self) -> None:
        """Poll now: a version or a collection has changed."""
        self._follower.wake()

    def wait_loaded(self, seconds: float) -> bool:
        """Block until all collections of the first poll are searched. False after `seconds`."""
        return self._follower.wait_loaded(seconds)

    def snapshot(self, name: str) -> CollectionSnapshot | None:
        """Return what this replica searches of a collection."""
        return self._follower.snapshot(name)

    def behind(self) -> int:
        """How many collections this replica does not search at their latest revision."""
        return self._follower.behind()

    def damaged(self) -> Mapping[str, str]:
        """What is wrong, by name, with collections whose stored parts fail their checks."""
        return self._follower.damaged()

    def find(self, name: str, permitted: Permitted) -> Revision:
        """Read a collection from the store. Blocks. Raises NoCollection, StorageUnavailable, InvalidVersion."""
        return writes.existing(revision_log.newest(self._store, name), name, permitted)

    def all(self, permitted: Permitted) -> list[Revision]:
        """Read all collections from the store, by name, without those that cannot be read (see `damaged`).

        Blocks. Raises StorageUnavailable.
        """
        heads = (self._readable(name) for name in revision_log.collection_names(self._store))
        return [head for head in heads if head and not head.deleted and permitted(head)]

    def _readable(self, name: str) -> Revision | None:
        try:
            return revision_log.newest(self._store, name)
        except InvalidVersion:
            return None  # The follower logs it; the others are listed anyway.

    def create(self, spec: writes.CollectionSpec) -> Revision:
        """Create a collection. Blocks. Raises as `writes.create` does, and TooManyCollections."""
        with self._quota.for_one_more(spec.name, spec.owner):
            return self._made(writes.create(self._store, spec))

    def delete(self, name: str, permitted: Permitted, mark: str | None = None) -> None:
        """Delete a collection. Blocks. Raises as `writes.delete` does."""
        made = self._made(writes.delete(self._store, name, permitted, mark))
        if made.deleted:  # Otherwise it was deleted before and created again.
            self._quota.deleted(made)

    def bytes(self) -> int:
        """Bytes of all collections in memory, with vectors of three versions."""
        return self._quota.bytes()

    def check_room(self, target: Revision, rows: int, size: int) -> None:
        """Check that so many rows, of so many bytes in memory, fit.

        Raises CollectionFull, AllFull, RowsUncounted.
        """
        self._quota.check(target, rows, size)

    def write(
        self,
        target: Revision,
        entries: Sequence[Entry],
        permitted: Permitted,
        mark: str | None = None,
        size: int = 0,
    ) -> Revision:
        """Write rows. `size`: bytes that the added rows take in memory.

        Blocks. Raises as `writes.write` and `check_room` do, and TooManySegments.
        """
        if len(target.segments) >= _MOST_SEGMENTS:
            self._maintenance.notice(target)
            raise TooManySegments(
                f"collection {target.name!r} has {len(target.segments)} segments, which are being "
                "merged; try again"
            )
        added = sum(each.feature_F is not None for each in entries)
        if not added:
            return self._made(writes.write(self._store, target, entries, permitted, mark))
        with self._quota.writing(target, added, size) as done:
            made = writes.write(self._store, target, entries, permitted, mark)
            done(made)
        return self._made(made)

    def _made(self, revision: Revision) -> Revision:
        self._follower.wake()
        self._maintenance.notice(revision)
        return revision


def open_collections(
    store: ObjectStore, live: LiveVersions, poll_seconds: float, limits: CollectionLimits
) -> Collections | None:
    """Return the collections, not yet started; None where the extra `search` is not installed."""
    if not is_installed():
        return None
    follower = CollectionsFollower(store, live, poll_seconds)
    return Collections(store, follower, Maintenance(store), limits)
