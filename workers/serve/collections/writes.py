"""Changes of collections by users: each is durable and visible as a whole when it returns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cmcl.contract.api.endpoint import FeatureType
from cmcl.contract.errors import StorageUnavailable, WorkerError
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections.compaction import GRACE
from workers.serve.collections.revision_log import (
    Change,
    Dropped,
    Revision,
    Segment,
    commit,
    mark_of,
    new_mark,
)
from workers.serve.collections.segments import (
    Entry,
    age_seconds,
    is_written_for,
    new_name,
    write_entries,
)


class NoCollection(WorkerError):
    """There is no such collection, or it is deleted, or not visible to the caller."""


class CollectionExists(WorkerError):
    """The name is taken by a collection with other properties."""


@dataclass(frozen=True)
class CollectionSpec:
    """The properties of a new collection."""

    name: str
    model: str
    owner: str | None
    feature_type: FeatureType


def create(store: ObjectStore, spec: CollectionSpec) -> Revision:
    """Create a collection, or return the present one if it has the same properties.

    Raises CollectionExists, CollectionBusy, StorageUnavailable.
    """
    return _committed(store, spec.name, lambda head: _first(spec, head), None)


class _Unchanged(Exception):
    """Nothing to do: it exists as specified, or the same request was done before."""

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
        if head.owner != spec.owner:  # No details of another owner's collection.
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
    """Delete a collection with all its items. Raises NoCollection, CollectionBusy, StorageUnavailable.

    Where the request with this mark has deleted it before, nothing is deleted and the newest revision is returned:
    by then there may be a new collection of that name.
    """
    mark = mark or new_mark()

    def change(head: Revision | None) -> Revision:
        if head is not None and any(is_written_for(each.name, mark) for each in head.dropped):
            raise _Unchanged(head)
        present = existing(head, name, permitted)
        now = datetime.now(UTC)
        # A deletion leaves a name with its mark, without a segment, which outlives the collection.
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

    Where the request with this mark has done so before, nothing is written and a revision that has it is returned.
    Raises NoCollection, where it was deleted since (also if it was created again, which is another one),
    CollectionBusy, StorageUnavailable. Partial changes are never visible, whenever the process dies.
    """
    mark = mark or new_mark()
    if was_written_for(target, mark):
        return target
    mark_here = _mark_in(target, mark)
    segment = write_entries(store, target.name, entries, target.feature_type, mark_here)

    def change(head: Revision | None) -> Revision:
        present = existing(head, target.name, permitted)
        if present.born != target.born:
            raise NoCollection(f"collection {target.name!r} was deleted in the meantime")
        if was_written_for(present, mark):
            raise _Unchanged(present)
        return _with_segment(present, segment)

    return _committed(store, target.name, change, mark_here)


def was_written_for(revision: Revision, mark: str) -> bool:
    """Whether the request with this mark has already written to this collection."""
    names = [*(each.name for each in revision.segments), *(each.name for each in revision.dropped)]
    mark_here = _mark_in(revision, mark)
    return any(is_written_for(name, mark_here) for name in names)


def _mark_in(revision: Revision, mark: str) -> str:
    """Marks differ by life: a collection that was created again keeps the dropped names of the one before."""
    return mark_of(mark.encode(), str(revision.born).encode())


def _committed(store: ObjectStore, name: str, change: Change, mark: str | None) -> Revision:
    try:
        return commit(store, name, change, mark)
    except _Unchanged as same:
        return same.revision


def _with_segment(head: Revision, segment: Segment) -> Revision:
    if age_seconds(segment.name, time.time()) > GRACE.total_seconds() / 2:
        # A sweep removes a segment that was not named for so long: its writer counts as dead.
        raise StorageUnavailable(f"collection {head.name!r}: the store took too long; try again")
    number = head.revision + 1
    dated = segment.model_copy(update={"first": number, "last": number})
    fields = {"segments": (*head.segments, dated), "changed_at": datetime.now(UTC)}
    return head.model_copy(update=fields)


def existing(head: Revision | None, name: str, permitted: Callable[[Revision], bool]) -> Revision:
    """Return the collection, if it exists and is visible. Raises NoCollection."""
    if head is None or head.deleted or not permitted(head):
        raise NoCollection(f"there is no collection {name!r}")
    return head
