"""Collections on both kinds of store: a revision can be created once, also concurrently."""

import threading

import numpy as np

from cmcl.storage.object_store import ObjectStore
from workers.serve.collections import revision_log, writes
from workers.serve.collections.compaction import compact
from workers.serve.collections.segments import Entry, batches

WRITERS, CHANGES_EACH = 4, 4


def entry(name: str) -> Entry:
    return Entry(name, "image", np.arange(1, 6, dtype=np.float32), None)


def test_writers_at_the_same_time_lose_no_change(store: ObjectStore) -> None:
    target = writes.create(store, writes.CollectionSpec("things", "m", None, "float32"))
    revisions: list[int] = []

    def write(writer: int) -> None:
        for change in range(CHANGES_EACH):
            made = writes.write(store, target, [entry(f"{writer}-{change}")], lambda _: True)
            revisions.append(made.revision)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(revisions) == list(range(2, 2 + WRITERS * CHANGES_EACH))
    head = revision_log.newest(store, "things")
    assert head is not None
    merged = compact(store, head)
    ids = {
        name
        for segment in merged.segments
        for batch in batches(store, "things", segment)
        for name in batch.column("id").to_pylist()
    }
    assert ids == {
        f"{writer}-{change}" for writer in range(WRITERS) for change in range(CHANGES_EACH)
    }
