"""The changes that users make: each is stored for good, and visible as a whole, when it returns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from workers.contract.errors import StorageUnavailable, WorkerError
from workers.serve.search.stored.compaction import GRACE
from workers.serve.search.stored.ledger import commit
from workers.serve.search.stored.revision import Dropped, FeatureType, Revision, Segment
from workers.serve.search.stored.segments import Entry, age_seconds, write_entries
from workers.storage.port import ObjectStore


class NoCollection(WorkerError):
    """There is none of that name, or it is deleted, or not for those who ask."""


class CollectionExists(WorkerError):
    """The name is taken by a collection with other properties."""


@dataclass(frozen=True)
class Wish:
    """What a new collection shall be."""

    name: str
    model: str
    owner: str | None
    feature_type: FeatureType


def create(store: ObjectStore, wish: Wish) -> Revision:
    """Make it; one that is there with the same properties is answered as it is.

    Raises CollectionExists, CollectionBusy, StorageUnavailable.
    """
    try:
        return commit(store, wish.name, lambda head: _first(wish, head))
    except _Unchanged as same:
        return same.revision


class _Unchanged(Exception):
    """Nothing is to be done."""

    def __init__(self, revision: Revision) -> None:
        super().__init__(revision.name)
        self.revision = revision


def _first(wish: Wish, head: Revision | None) -> Revision:
    if head is not None and not head.deleted:
        if (head.model, head.feature_type, head.owner) == (
            wish.model,
            wish.feature_type,
            wish.owner,
        ):
            raise _Unchanged(head)
        if head.owner != wish.owner:  # No more than that: it may be nobody else's business.
            raise CollectionExists(f"the name {wish.name!r} is taken; take another one")
        raise CollectionExists(
            f"there is a collection {wish.name!r} already, of model {head.model!r} with features as "
            f"{head.feature_type}; delete it first, or take another name"
        )
    now = datetime.now(UTC)
    revision = head.revision + 1 if head else 1
    return Revision(
        name=wish.name,
        revision=revision,
        change="",
        parent=None,
        born=revision,
        model=wish.model,
        owner=wish.owner,
        feature_type=wish.feature_type,
        created_at=now,
        changed_at=now,
        dropped=head.dropped if head else (),
    )


def delete(store: ObjectStore, name: str, permitted: Callable[[Revision], bool]) -> Revision:
    """Let it be gone, with all that is in it. Raises NoCollection, CollectionBusy, StorageUnavailable."""

    def change(head: Revision | None) -> Revision:
        present = existing(head, name, permitted)
        now = datetime.now(UTC)
        dropped = tuple(Dropped(name=each.name, at=now) for each in present.segments)
        fields = {"deleted": True, "segments": (), "dropped": (*present.dropped, *dropped)}
        return present.model_copy(update={**fields, "changed_at": now})

    return commit(store, name, change)


def write(
    store: ObjectStore,
    target: Revision,
    entries: Sequence[Entry],
    permitted: Callable[[Revision], bool],
) -> Revision:
    """Add, replace and remove rows, as one change. `target`: the collection as it was looked up.

    Raises NoCollection, where it was deleted meanwhile (also if it was made anew: that is another
    one), CollectionBusy, StorageUnavailable. Nobody sees a part of it, whenever this dies.
    """
    segment = write_entries(store, target.name, entries, target.feature_type)

    def change(head: Revision | None) -> Revision:
        present = existing(head, target.name, permitted)
        if present.born != target.born:
            raise NoCollection(f"collection {target.name!r} was deleted meanwhile")
        return _with_segment(present, segment)

    return commit(store, target.name, change)


def _with_segment(head: Revision, segment: Segment) -> Revision:
    if age_seconds(segment.name, time.time()) > GRACE.total_seconds() / 2:
        # Sweepers take a segment that nobody named for so long for one whose writer has died.
        raise StorageUnavailable(f"collection {head.name!r}: the store took too long; try again")
    number = head.revision + 1
    dated = segment.model_copy(update={"first": number, "last": number})
    fields = {"segments": (*head.segments, dated), "changed_at": datetime.now(UTC)}
    return head.model_copy(update=fields)


def existing(head: Revision | None, name: str, permitted: Callable[[Revision], bool]) -> Revision:
    """The collection, if there is one for those who ask. Raises NoCollection."""
    if head is None or head.deleted or not permitted(head):
        raise NoCollection(f"there is no collection {name!r}")
    return head
