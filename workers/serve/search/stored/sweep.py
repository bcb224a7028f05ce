"""What no collection consists of any more is removed, after a time of grace.

Old revisions go, the oldest first, all but the last few. Segments go that the newest revision does
not name, once they are older than anybody's write or reading can take: they were dropped long ago,
or their writer died before it could name them.
"""

from datetime import datetime

from workers.serve.search.stored import ledger
from workers.serve.search.stored.compaction import GRACE, still_kept
from workers.serve.search.stored.revision import Revision
from workers.serve.search.stored.segments import age_seconds
from workers.storage import layout
from workers.storage.port import ObjectStore


def sweep(store: ObjectStore, name: str, now: datetime) -> int:
    """How many objects were removed. Raises StorageUnavailable; doing it twice is harmless."""
    head = ledger.newest(store, name)
    if head is None:
        return 0
    gone = [*_old_revisions(store, head), *_unnamed_segments(store, head, now)]
    for key in gone:
        store.delete(key)
    return len(gone)


def _old_revisions(store: ObjectStore, head: Revision) -> list[str]:
    newest_to_go = head.revision - ledger.KEPT_REVISIONS
    numbers = ledger.revision_numbers(store, head.name)
    return [layout.collection_revision(head.name, each) for each in numbers if each <= newest_to_go]


def _unnamed_segments(store: ObjectStore, head: Revision, now: datetime) -> list[str]:
    named = {segment.name for segment in head.segments}
    named |= {dropped.name for dropped in still_kept(head, now)}
    prefix = layout.collection_segments(head.name)
    return [
        key
        for key in store.keys(prefix)
        if (segment := key.removeprefix(prefix)) not in named
        and age_seconds(segment, now.timestamp()) > GRACE.total_seconds()
    ]
