"""What no collection consists of any more is removed, after a time of grace.

Old revisions go, the oldest first, all but the last few. Segments go that the newest revision does
not name, once they are older than anybody's write or reading can take: they were dropped long ago,
or their writer died before it could name them. And the whole of a collection goes that was deleted so
long ago, so that names are not followed for ever.
"""

import uuid
from collections.abc import Iterator
from datetime import datetime

from cmcl.contract.errors import ObjectExists, ObjectNotFound
from workers.serve.search.stored import ledger
from workers.serve.search.stored.compaction import GRACE, still_kept
from workers.serve.search.stored.revision import Revision
from workers.serve.search.stored.segments import age_seconds
from workers.storage import layout
from workers.storage.object_store import ObjectStore


def sweep(store: ObjectStore, name: str, now: datetime) -> int:
    """How many objects were removed. Raises StorageUnavailable; doing it twice is harmless."""
    head = ledger.newest(store, name)
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
        return ledger.free(store, head)
    mark = head.model_copy(
        update={
            "revision": head.revision + 1,
            "born": head.revision + 1,
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
    return ledger.free(store, mark)


def _keep_number(store: ObjectStore, number: int) -> None:
    """The highest of all is enough."""
    try:
        store.create(layout.collection_number(number), b"")
    except ObjectExists:
        pass  # As good as if it were ours.
    highest = ledger.highest_freed(store)
    for key in list(store.keys(layout.collection_numbers())):
        if key < layout.collection_number(highest):
            store.delete(key)


def _left_behind(store: ObjectStore, name: str, now: datetime) -> Iterator[str]:
    """Where no revision counts: what whoever freed the name, or slept meanwhile, did not remove.

    By its age, as somebody may be taking the name at this moment.
    """
    for number in ledger.revision_numbers(store, name):
        try:
            changed_at = ledger.read_revision(store, name, number).changed_at
        except ObjectNotFound:
            continue  # Others sweep as well.
        if now - changed_at > GRACE:
            yield layout.collection_revision(name, number)


def _old_revisions(store: ObjectStore, head: Revision) -> list[str]:
    newest_to_go = head.revision - ledger.KEPT_REVISIONS
    numbers = ledger.revision_numbers(store, head.name)
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
