"""The changes that users make: each is stored for good, and visible as a whole, when it returns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cmcl.contract.errors import StorageUnavailable, WorkerError
from workers.serve.collections.compaction import GRACE
from workers.serve.collections.idempotency import mark_of, new_mark
from workers.serve.collections.revision_log import (
    Change,
    Dropped,
    FeatureType,
    Revision,
    Segment,
    commit,
)
from workers.serve.collections.segments import (
    Entry,
    age_seconds,
    is_written_for,
    new_name,
    write_entries,
)
from workers.storage.port import ObjectStore


class NoCollection(WorkerError):
    """There is none of that name, or it is deleted, or not for those who ask."""


class CollectionExists(WorkerError):
    """The name is taken by a collection with other properties."""


@dataclass(frozen=True)
class CollectionSpec:
    """What a new collection shall be."""

    name: str
    model: str
    owner: str | None
    feature_type: FeatureType


def create(store: ObjectStore, spec: CollectionSpec) -> Revision:
    """Make it; one that is there with the same properties is answered as it is.

    Raises CollectionExists, CollectionBusy, StorageUnavailable.
    """
    return _committed(store, spec.name, lambda head: _first(spec, head), None)


class _Unchanged(Exception):
    """Nothing is to be done: it is as it was wished, or the same request did it before."""

    def __init__(self, revision: Revision) -> None:
        super().__init__(revision.name)
        self.revision = revision


def _first(spec: CollectionSpec, head: Revision | None) -> Revision:
    if head is not None and not head.deleted:
        if (head.model, head.feature_type, head.owner) == (
            spec.model,
            spec.feature_type,
            spec.owner,
        ):
            raise _Unchanged(head)
        if head.owner != spec.owner:  # No more than that: it may be nobody else's business.
            raise CollectionExists(f"the name {spec.name!r} is taken; take another one")
        raise CollectionExists(
            f"there is a collection {spec.name!r} already, of model {head.model!r} with features as "
            f"{head.feature_type}; delete it first, or take another name"
        )
    now = datetime.now(UTC)
    revision = head.revision + 1 if head else 1
    return Revision(
        name=spec.name,
        revision=revision,
        change="",
        parent=None,
        born=revision,
        model=spec.model,
        owner=spec.owner,
        feature_type=spec.feature_type,
        created_at=now,
        changed_at=now,
        dropped=head.dropped if head else (),
    )


def delete(
    store: ObjectStore,
    name: str,
    permitted: Callable[[Revision], bool],
    mark: str | None = None,
) -> Revision:
    """Let it be gone, with all that is in it. Raises NoCollection, CollectionBusy, StorageUnavailable.

    Where the request with this mark has deleted it before, nothing is deleted, and the answer is the
    newest revision: by then somebody may have made a collection of that name anew.
    """
    mark = mark or new_mark()

    def change(head: Revision | None) -> Revision:
        if head is not None and any(is_written_for(each.name, mark) for each in head.dropped):
            raise _Unchanged(head)
        present = existing(head, name, permitted)
        now = datetime.now(UTC)
        # A deletion leaves a name with its mark there, of no segment, which outlives the collection.
        names = (*(each.name for each in present.segments), new_name(mark))
        dropped = tuple(Dropped(name=each, at=now) for each in names)
        fields = {"deleted": True, "segments": (), "dropped": (*present.dropped, *dropped)}
        return present.model_copy(update={**fields, "changed_at": now})

    return _committed(store, name, change, mark)


def write(
    store: ObjectStore,
    target: Revision,
    entries: Sequence[Entry],
    permitted: Callable[[Revision], bool],
    mark: str | None = None,
) -> Revision:
    """Add, replace and remove rows, as one change. `target`: the collection as it was looked up.

    Where the request with this mark has done so before, nothing is written, and the answer is a
    revision that has it. Raises NoCollection, where it was deleted meanwhile (also if it was made
    anew: that is another one), CollectionBusy, StorageUnavailable. Nobody sees a part of it, whenever
    this dies.
    """
    mark = mark or new_mark()
    if was_written_for(target, mark):
        return target
    mark_here = _mark_in(target, mark)
    segment = write_entries(store, target.name, entries, target.feature_type, mark_here)

    def change(head: Revision | None) -> Revision:
        present = existing(head, target.name, permitted)
        if present.born != target.born:
            raise NoCollection(f"collection {target.name!r} was deleted meanwhile")
        if was_written_for(present, mark):
            raise _Unchanged(present)
        return _with_segment(present, segment)

    return _committed(store, target.name, change, mark_here)


def was_written_for(revision: Revision, mark: str) -> bool:
    """Whether the request with this mark has written to it already, since it was made."""
    names = [*(each.name for each in revision.segments), *(each.name for each in revision.dropped)]
    mark_here = _mark_in(revision, mark)
    return any(is_written_for(name, mark_here) for name in names)


def _mark_in(revision: Revision, mark: str) -> str:
    """One made anew under its name keeps the names of what the one before has dropped."""
    return mark_of(mark.encode(), str(revision.born).encode())


def _committed(store: ObjectStore, name: str, change: Change, mark: str | None) -> Revision:
    try:
        return commit(store, name, change, mark)
    except _Unchanged as same:
        return same.revision


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
