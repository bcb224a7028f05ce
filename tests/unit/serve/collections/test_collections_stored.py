"""Collections in the store: changes are atomic, also beside concurrent writers."""

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from cmcl.contract.errors import DigestMismatch, ObjectNotFound, StorageUnavailable
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.collections.scene import (
    EVERYONE,
    NAME,
    add,
    create,
    entries,
    feature,
    removals,
)
from workers.serve.collections import revision_log, writes
from workers.serve.collections.compaction import (
    MOST_SEGMENTS,
    Superseded,
    compact,
    is_due,
    run_to_merge,
)
from workers.serve.collections.maintenance import Maintenance, sweep
from workers.serve.collections.revision_log import Revision, Segment
from workers.serve.collections.segments import batches, features_matrix

NOW = datetime.now(UTC)
MUCH_LATER = NOW + timedelta(hours=2)
CHANGES_EACH = 8
WRITERS = 6


def rows_of(store: FlakyStore, revision: Revision) -> dict[str, bytes]:
    """Rows of that revision: the feature's bytes by id."""
    found: dict[str, bytes] = {}
    for segment in revision.segments:
        for batch in batches(store, NAME, segment):
            for row in range(batch.num_rows):
                one = batch.slice(row, 1)
                key = one.column("id")[0].as_py()
                found.pop(key, None)
                if not one.column("deleted")[0].as_py():
                    found[key] = features_matrix(one.column("feature"))[0].tobytes()
    return found


def newest(store: FlakyStore) -> Revision:
    head = revision_log.newest(store, NAME)
    assert head is not None
    return head


def segment_files(store: FlakyStore) -> list[str]:
    return list(store.keys(layout.collection_segments(NAME)))


def test_writers_at_the_same_time_lose_no_change(store: FlakyStore) -> None:
    create(store)
    answered: list[Revision] = []

    def write(writer: int) -> None:
        for change in range(CHANGES_EACH):
            first = 100 * writer + change
            answered.append(add(store, entries(first, 1)))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({revision.revision for revision in answered}) == WRITERS * CHANGES_EACH
    assert set(rows_of(store, newest(store))) == {
        f"image-{100 * writer + change}"
        for writer in range(WRITERS)
        for change in range(CHANGES_EACH)
    }


def test_a_writer_that_dies_before_its_revision_leaves_nothing_visible(store: FlakyStore) -> None:
    before = add(store, entries(0, 3))
    store.broken = layout.collection_revision(NAME, before.revision + 1)
    with pytest.raises(StorageUnavailable):
        add(store, entries(100, 3))
    store.broken = None
    assert len(segment_files(store)) == 2
    assert newest(store) == before
    assert set(rows_of(store, add(store, entries(3, 1)))) == {f"image-{n}" for n in range(4)}


def test_what_a_dead_writer_left_is_swept_after_the_grace(store: FlakyStore) -> None:
    before = add(store, entries(0, 3))
    store.broken = layout.collection_revision(NAME, before.revision + 1)
    with pytest.raises(StorageUnavailable):
        add(store, entries(100, 3))
    store.broken = None
    assert sweep(store, NAME, NOW) == 0
    assert sweep(store, NAME, MUCH_LATER) == 1
    assert segment_files(store) == [layout.collection_segment(NAME, before.segments[0].name)]


def test_a_number_that_was_swept_and_taken_again_does_not_count(store: FlakyStore) -> None:
    for change in range(revision_log.KEPT_REVISIONS + 5):
        add(store, entries(change, 1))
    sweep(store, NAME, NOW)
    head = newest(store)
    with pytest.raises(ObjectNotFound):
        revision_log.read_revision(store, NAME, 3)
    slept = head.model_copy(update={"revision": 3, "change": "slept", "parent": "old"})
    store.create(layout.collection_revision(NAME, 3), slept.model_dump_json().encode())
    assert not revision_log._counts(store, slept)
    assert newest(store) == head


def test_a_change_that_others_have_built_on_counts(store: FlakyStore) -> None:
    first = add(store, entries(0, 1))
    add(store, entries(1, 1))
    add(store, entries(2, 1))
    assert revision_log._counts(store, first)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from workers.serve.collections import writes
from workers.serve.collections.segments import Entry
from cmcl.storage.local import LocalStore

store = LocalStore(Path(sys.argv[1]))
target = writes.create(store, writes.CollectionSpec("things", "m", None, "float32"))
for number in range(100_000):
    entries = [Entry(f"{number}-{half}", "image", np.ones(5, np.float32), None) for half in (0, 1)]
    writes.write(store, target, entries, lambda _: True)
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_loses_nothing_that_it_answered(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for _ in range(30):
            answered = int(writer.stdout.readline())
        writer.kill()
        answered = max([answered, *map(int, writer.stdout)])
    store = FlakyStore(LocalStore(root))
    found = rows_of(store, newest(store))
    assert {f"{number}-0" for number in range(answered + 1)} <= set(found)
    assert all(f"{key.partition('-')[0]}-1" in found for key in found)


def test_writing_merges_segments(store: FlakyStore) -> None:
    maintenance = Maintenance(store)
    maintenance.start()
    for change in range(2 * MOST_SEGMENTS):
        maintenance.notice(add(store, entries(change, 1)))
    deadline = time.monotonic() + 60
    while is_due(head := newest(store)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    maintenance.stop()
    assert len(rows_of(store, head)) == 2 * MOST_SEGMENTS


def test_many_segments_become_few_with_the_same_rows(store: FlakyStore) -> None:
    add(store, entries(0, 40))
    for change in range(MOST_SEGMENTS):
        add(store, entries(40 * change % 90, 7))
    add(store, removals(["image-3", "image-41"]))
    head = newest(store)
    before = rows_of(store, head)
    assert is_due(head)
    merged = compact(store, head)
    assert len(merged.segments) < len(head.segments) / 2
    assert rows_of(store, merged) == before
    assert "image-3" not in before


def test_merging_keeps_removals_of_rows_in_earlier_segments(store: FlakyStore) -> None:
    add(store, entries(0, 4000))
    add(store, removals(["image-7"]))
    head = add(store, entries(5000, 1))
    assert run_to_merge(head.segments)[0] == head.segments[1]
    merged = compact(store, head)
    assert len(merged.segments) == 2
    assert merged.purged == 0
    assert "image-7" not in rows_of(store, merged)


def test_what_is_written_while_others_merge_is_kept(store: FlakyStore) -> None:
    for change in range(4):
        head = add(store, entries(change, 1))
    later = add(store, entries(10, 1))
    merged = compact(store, head)
    assert merged.segments[-1] == later.segments[-1]
    assert set(rows_of(store, merged)) == {"image-0", "image-1", "image-2", "image-3", "image-10"}


def test_the_second_to_merge_is_rejected(store: FlakyStore) -> None:
    for change in range(4):
        head = add(store, entries(change, 1))
    merged = compact(store, head)
    with pytest.raises(Superseded):
        compact(store, head)
    assert newest(store) == merged


def test_merged_segments_stay_for_those_who_read_them(store: FlakyStore) -> None:
    for change in range(4):
        head = add(store, entries(change, 1))
    before = rows_of(store, head)
    merged = compact(store, head)
    sweep(store, NAME, NOW)
    assert rows_of(store, head) == before
    sweep(store, NAME, MUCH_LATER)
    assert segment_files(store) == [layout.collection_segment(NAME, merged.segments[0].name)]


def test_sizes_decide_which_segments_are_merged() -> None:
    def sized(*sizes: int) -> list[Segment]:
        return [
            Segment(
                name=str(i), sha256="0" * 64, bytes=size, rows=1, texts_bytes=0, first=1, last=1
            )
            for i, size in enumerate(sizes)
        ]

    def merged(*sizes: int) -> list[int]:
        return [segment.bytes for segment in run_to_merge(sized(*sizes))]

    assert merged(1000, 10, 10, 10) == [10, 10, 10]
    assert merged(30, 10, 10, 10) == [30, 10, 10, 10]
    assert merged(1000, 100, 10, 1) == [10, 1]


def test_a_deleted_collection_takes_no_rows(store: FlakyStore) -> None:
    target = add(store, entries(0, 1))
    writes.delete(store, NAME, EVERYONE)
    with pytest.raises(writes.NoCollection):
        writes.write(store, target, entries(1, 1), EVERYONE)


def test_rows_for_a_deleted_collection_do_not_reach_its_successor(store: FlakyStore) -> None:
    target = add(store, entries(0, 1))
    writes.delete(store, NAME, EVERYONE)
    again = create(store)
    with pytest.raises(writes.NoCollection):
        writes.write(store, target, entries(1, 1), EVERYONE)
    assert again.revision == again.born == target.revision + 2
    assert rows_of(store, newest(store)) == {}


def test_a_name_is_taken_by_other_properties(store: FlakyStore) -> None:
    create(store)
    with pytest.raises(writes.CollectionExists, match="of model 'm'"):
        writes.create(store, writes.CollectionSpec(NAME, "another", None, "float32"))


def test_creating_it_twice_is_the_same_as_once(store: FlakyStore) -> None:
    assert create(store) == create(store)


def test_a_damaged_segment_is_noticed(store: FlakyStore) -> None:
    head = add(store, entries(0, 2))
    key = layout.collection_segment(NAME, head.segments[0].name)
    data = bytearray(store.read(key))
    data[20] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(DigestMismatch):
        rows_of(store, head)


def test_float16_features_of_any_length_keep_their_direction(store: FlakyStore) -> None:
    create(store, "float16")
    new = entries(0, 1)[0]
    long = new._replace(feature_F=feature("image", 0) * np.float32(1e9))
    head = writes.write(store, create(store, "float16"), [long], EVERYONE)
    stored = np.frombuffer(rows_of(store, head)["image-0"], np.float32)
    wanted = feature("image", 0) / np.linalg.norm(feature("image", 0))
    np.testing.assert_allclose(stored, wanted, atol=1e-3)
