"""Collections as the routes use them: changes go to their tables, searches to what the follower has opened."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

from cmcl.contract.errors import InvalidVersion, WorkerError
from cmcl.fairness import fits, share_now
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections import registry
from workers.serve.collections.follower import CollectionsFollower, CollectionSnapshot
from workers.serve.collections.registry import CollectionSpec, Life, Permitted
from workers.serve.collections.table import Head, Row
from workers.serve.settings import CollectionLimits

NO_LIMITS = CollectionLimits(*[sys.maxsize] * 3)
_MARK_DIGITS = 16


class TooManyCollections(WorkerError):
    """The owner has the permitted number of collections."""


class CollectionFull(WorkerError):
    """The collection has the permitted number of rows."""


class AllFull(WorkerError):
    """The owner's collections, or all together, have the permitted rows."""


def is_installed() -> bool:
    """Whether Lance is installed: without it there are no collections."""
    return find_spec("lance") is not None


def mark_of(*request: bytes) -> str:
    """Return the mark of a request from what identifies it: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in request:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:_MARK_DIGITS]


class Collections:
    """All collections of a store. Methods that block say so; all may be called from any thread.

    Limits are checked by what this replica has read: where several write at the same moment, one can be exceeded by
    what the others add between two polls.
    """

    def __init__(
        self,
        store: ObjectStore,
        follower: CollectionsFollower,
        limits: CollectionLimits = NO_LIMITS,
    ) -> None:
        self._store = store
        self._limits = limits
        self.follower = follower

    def snapshot(self, name: str) -> CollectionSnapshot | None:
        """Return what this replica knows of a collection."""
        return self.follower.snapshots().get(name)

    def find(self, name: str, permitted: Permitted) -> Life:
        """Read a collection from the store. Blocks. Raises NoCollection, StorageUnavailable, InvalidVersion."""
        return registry.existing(self._store, name, permitted)

    def head(self, life: Life) -> Head:
        """Return the latest state. Blocks."""
        return registry.table_of(self._store, life).read().head

    def all(self, permitted: Permitted) -> list[Life]:
        """Read all collections from the store, by name, without those that cannot be read. Blocks."""
        return [life for life in self._readable() if life.ended is None and permitted(life)]

    def create(self, spec: CollectionSpec) -> Life:
        """Create a collection. Blocks. Raises CollectionExists, TooManyCollections."""
        theirs = {life.name for life in self.all(lambda life: life.owner == spec.owner)}
        if spec.name not in theirs and len(theirs) >= self._limits.collections:
            raise TooManyCollections(
                f"you have {len(theirs)} collections, which is the limit of one owner; delete one "
                f"before you create {spec.name!r}"
            )
        life = registry.create(self._store, spec)
        self.follower.wake()
        return life

    def delete(self, name: str, permitted: Permitted, mark: str | None = None) -> None:
        """Delete a collection. Blocks. Raises NoCollection."""
        registry.delete(self._store, name, permitted, mark)
        self.follower.wake()

    def write(self, life: Life, rows: Sequence[Row], mark: str | None = None) -> int:
        """Write rows and return the revision. Blocks. Raises as `CollectionTable.write` and `check_room` do."""
        self.check_room(life, sum(row.feature_F is not None for row in rows))
        versions = self.follower.versions_of(life)
        versions.live()
        made = registry.table_of(self._store, life).write(rows, versions.embed, mark)
        self.follower.wake()
        return made

    def check_room(self, life: Life, more: int) -> None:
        """Check that so many rows fit. Raises CollectionFull, AllFull."""
        rows = {each.life: each.rows for each in self.follower.snapshots().values()}
        present = rows.get(life, 0)
        if more and present + more > self._limits.rows:
            raise CollectionFull(
                f"collection {life.name!r} has {present} rows, and {more} more would be over the "
                f"limit of {self._limits.rows}"
            )
        total = sum(rows.values())
        own = sum(count for each, count in rows.items() if each.owner == life.owner)
        limit = self._limits.all_rows
        free = total + more <= limit
        if more and not (free if life.owner is None else fits(limit, own, total, more)):
            share = "" if life.owner is None else f", {share_now(limit, own, total)} of them yours"
            raise AllFull(
                f"your collections have {own} rows, all together {total}, and these items {more}; "
                f"permitted are {limit} for all{share}: remove items or collections, or ask the "
                "operator of the endpoint for a larger max_searched_rows"
            )

    def damaged(self) -> Mapping[str, str]:
        """What is wrong, by name, with collections whose stored parts cannot be read."""
        return self.follower.damaged()

    def _readable(self) -> Iterator[Life]:
        for name in registry.names(self._store):
            try:
                life = registry.newest(self._store, name)
            except InvalidVersion:
                continue  # The follower logs it; the others are listed anyway.
            if life is not None:
                yield life
