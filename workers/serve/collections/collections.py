"""Collections as the routes use them: changes go to their tables, searches to what the follower has opened."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from cmcl.contract.errors import InvalidVersion, WorkerError
from cmcl.fairness import fits, share_now
from workers.serve.collections.follower import CollectionsFollower
from workers.serve.collections.registry import Permitted, Registry
from workers.serve.collections.table import NOTHING, CollectionSpec, NoCollection, Row, State
from workers.serve.settings import CollectionLimits

NO_LIMITS = CollectionLimits(*[sys.maxsize] * 3)
_MARK_DIGITS = 16


class TooManyCollections(WorkerError):
    """The owner has the permitted number of collections."""


class CollectionFull(WorkerError):
    """The collection has the permitted number of rows."""


class AllFull(WorkerError):
    """The owner's collections, or all together, have the permitted rows."""


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
        registry: Registry,
        follower: CollectionsFollower,
        limits: CollectionLimits = NO_LIMITS,
    ) -> None:
        self.registry = registry
        self._limits = limits
        self.follower = follower

    def all(self, permitted: Permitted) -> list[State]:
        """Read all collections from the store, by name, without those that cannot be read. Blocks."""
        found = []
        for name in self.registry.names():
            # The follower logs one that cannot be read; the others are listed anyway.
            with suppress(NoCollection, InvalidVersion):
                found.append(self.registry.existing(name, permitted))
        return found

    def create(self, spec: CollectionSpec) -> State:
        """Create a collection. Blocks. Raises CollectionExists, TooManyCollections."""
        theirs = {each.head.spec.name for each in self.all(lambda each: each.owner == spec.owner)}
        if spec.name not in theirs and len(theirs) >= self._limits.collections:
            raise TooManyCollections(
                f"you have {len(theirs)} collections, which is the limit of one owner; delete one "
                f"before you create {spec.name!r}"
            )
        state = self.registry.create(spec)
        self.follower.wake()
        return state

    def delete(self, name: str, permitted: Permitted, mark: str | None = None) -> None:
        """Delete a collection. Blocks. Raises NoCollection."""
        self.registry.delete(name, permitted, mark)
        self.follower.wake()

    def write(
        self,
        state: State,
        rows: Sequence[Row],
        mark: str | None = None,
        replaced: Mapping[str, float] = NOTHING,
    ) -> int:
        """Write rows, and return the revision. Blocks. Raises as `CollectionTable.write` and `check_room` do."""
        self.check_room(state, sum(row.feature_F is not None for row in rows), mark)
        versions = self.follower.versions_of(state)
        versions.live()
        revision = state.table.write(rows, versions.embed, mark, replaced)
        assert revision >= state.head.revision
        self.follower.wake()
        return revision

    def check_room(self, state: State, more: int, mark: str | None = None) -> None:
        """Check that so many rows fit. Raises CollectionFull, AllFull."""
        if not more or mark in state.head.marks:
            return  # A repeated write adds nothing.
        spec, states = state.head.spec, [each.state for each in self.follower.snapshots().values()]
        assert more > 0
        present = sum(each.rows for each in states if each.table == state.table)
        if present + more > self._limits.rows:
            raise CollectionFull(
                f"collection {spec.name!r} has {present} rows, and {more} more would be over the "
                f"limit of {self._limits.rows}"
            )
        total, limit = sum(each.rows for each in states), self._limits.all_rows
        own = sum(each.rows for each in states if each.head.spec.owner == spec.owner)
        has_room = total + more <= limit
        if not (has_room if spec.owner is None else fits(limit, own, total, more)):
            share = "" if spec.owner is None else f", {share_now(limit, own, total)} of them yours"
            raise AllFull(
                f"your collections have {own} rows, all together {total}, and these items {more}; "
                f"permitted are {limit} for all{share}: remove items or collections, or ask the "
                "operator of the endpoint for a larger max_searched_rows"
            )
