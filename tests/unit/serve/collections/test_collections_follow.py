"""Collections follow the model: vectors are computed again from features while the old ones answer."""

import threading
import time
from dataclasses import replace

import pytest

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.collections.scene import (
    EVERYONE,
    NAME,
    Scene,
    add,
    brute_force,
    create,
    embedded,
    entries,
    feature,
    removals,
    search,
)
from tests.unit.serve.served_versions import version
from workers.serve.collections import revision_log, writes
from workers.serve.collections.compaction import compact
from workers.serve.collections.index import Index, is_installed
from workers.serve.collections.segments import ROWS_AT_ONCE, Entry
from workers.serve.versions.loading import ServedVersion

BOTH = [("image", n) for n in range(30)] + [("text", n) for n in range(10)]


def segment_reads(store: FlakyStore) -> int:
    return sum("/segments/" in call for call in store.calls)


def is_right(index: Index) -> bool:
    """Whether what it finds is what its own version finds by brute force."""
    query_E = embedded(index.version, "text", 300)
    return [hit.id for hit in search(index, "text", 300).hits] == brute_force(index, query_E, BOTH)


@pytest.fixture
def filled(scene: Scene) -> Scene:
    add(scene.store, entries(0, 20) + entries(0, 10, "text"))
    add(scene.store, entries(20, 10))
    scene.settle()
    return scene


def test_vectors_are_those_of_the_new_version_after_a_swap(filled: Scene) -> None:
    before = filled.index()
    filled.swap(2)
    after = filled.settle()
    assert (before.version.number, after.version.number) == (1, 2)
    assert is_right(before)
    assert is_right(after)


def test_the_old_version_answers_while_vectors_are_made(filled: Scene) -> None:
    filled.swap(2)
    filled.follower.poll()
    numbers = []
    while filled.follower.work():
        numbers.append(filled.index().version.number)
        assert is_right(filled.index())
    assert numbers
    assert set(numbers) == {1}
    assert filled.index().version.number == 2


def test_a_collection_is_behind_until_the_new_version_searches_it(filled: Scene) -> None:
    follower, rows = filled.follower, filled.index().rows
    assert (follower.behind(), follower.rows()) == (0, rows)
    filled.swap(2)
    assert follower.behind() == 1
    filled.settle()
    assert (follower.behind(), follower.rows()) == (0, rows)
    add(filled.store, entries(500, 3))
    filled.settle()
    assert (follower.behind(), follower.rows()) == (0, rows + 3)


def test_what_is_written_while_vectors_are_made_is_found_at_once(filled: Scene) -> None:
    filled.swap(2)
    filled.follower.poll()
    assert filled.follower.work()
    add(filled.store, [*entries(500, 1), *removals(["image-0"])])
    filled.follower.poll()
    during = filled.index()
    assert during.version.number == 1
    assert search(during, "image", 500).hits[0].id == "image-500"
    after = filled.settle()
    assert after.version.number == 2
    assert search(after, "image", 500).hits[0].id == "image-500"
    assert after.rows == during.rows == 40


def test_ids_and_payloads_are_shared_between_versions(filled: Scene) -> None:
    before = filled.index()
    filled.swap(2)
    after = filled.settle()
    assert [part.contents for part in after.parts] == [part.contents for part in before.parts]


def test_a_roll_back_uses_the_index_that_was_kept(filled: Scene) -> None:
    filled.swap(2)
    filled.settle()
    reads = segment_reads(filled.store)
    filled.swap(1)
    filled.follower.poll()
    assert filled.index().version.number == 1
    assert is_right(filled.index())
    assert segment_reads(filled.store) == reads


def test_a_kept_index_takes_in_what_was_written_since(filled: Scene) -> None:
    filled.swap(2)
    filled.settle()
    add(filled.store, entries(500, 1))
    filled.settle()
    filled.swap(1)
    filled.follower.poll()
    assert search(filled.index(), "image", 500).hits[0].id == "image-500"
    assert filled.index().rows == 41


def test_a_roll_back_in_the_middle_leaves_the_old_index(filled: Scene) -> None:
    filled.swap(2)
    filled.follower.poll()
    filled.follower.work()
    filled.swap(1)
    filled.follower.poll()
    assert not filled.follower.work()
    assert filled.index().version.number == 1


def test_a_newer_version_still_waits_for_the_one_that_is_being_built(filled: Scene) -> None:
    filled.swap(2)
    filled.follower.poll()
    filled.follower.work()
    filled.swap(3)
    filled.follower.poll()
    while filled.follower.work():
        pass
    assert filled.index().version.number == 2
    assert filled.settle().version.number == 3


def test_an_unavailable_store_leaves_what_is_loaded(filled: Scene) -> None:
    filled.store.broken = "/segments/"
    filled.swap(2)
    filled.settle()
    snapshot = filled.follower.snapshot(NAME)
    assert snapshot is not None
    assert snapshot.problem is not None
    assert filled.index().version.number == 1
    assert is_right(filled.index())
    filled.store.broken = None
    filled.clock.now += 60
    assert filled.settle().version.number == 2
    snapshot = filled.follower.snapshot(NAME)
    assert snapshot is not None
    assert snapshot.problem is None


def test_a_partially_read_change_is_invisible(filled: Scene) -> None:
    add(filled.store, [*entries(0, 1), *entries(500, 2, "text")])
    last = add(filled.store, entries(600, 1))
    before = filled.index()
    filled.store.broken = last.segments[-1].name
    filled.follower.poll()
    assert filled.index() is before
    filled.store.broken = None
    filled.clock.now += 60
    assert filled.settle().rows == 43


def test_a_version_with_other_widths_is_not_followed(filled: Scene) -> None:
    other = version(2, spec=ModelSpec(width=6, modalities={"image": 9, "text": 4}))
    filled.swap(2, other)
    filled.settle()
    snapshot = filled.follower.snapshot(NAME)
    assert snapshot is not None
    assert "features of modality 'image' have width 5" in (snapshot.problem or "")
    assert filled.index().version.number == 1


def test_failures_are_tried_again_ever_more_rarely(filled: Scene) -> None:
    filled.store.broken = "/segments/"
    filled.swap(2)
    reads = []
    for _ in range(100):
        filled.clock.now += 0.1
        filled.settle()
        reads.append(segment_reads(filled.store))
    assert 3 <= len(set(reads)) <= 12


def test_a_collection_of_a_deleted_model_has_no_index(filled: Scene) -> None:
    filled.live.forget("m")
    filled.follower.poll()
    snapshot = filled.follower.snapshot(NAME)
    assert snapshot is not None
    assert snapshot.index is None


def test_a_deleted_collection_is_not_shown(filled: Scene) -> None:
    writes.delete(filled.store, NAME, EVERYONE)
    filled.follower.poll()
    assert filled.follower.snapshot(NAME) is None


def test_a_recreated_collection_is_empty(filled: Scene) -> None:
    writes.delete(filled.store, NAME, EVERYONE)
    create(filled.store)
    assert filled.settle().rows == 0


def test_merging_segments_changes_nothing_and_reads_nothing(filled: Scene) -> None:
    head = revision_log.newest(filled.store, NAME)
    assert head is not None
    compact(filled.store, head)
    reads = segment_reads(filled.store)
    filled.follower.poll()
    assert segment_reads(filled.store) == reads
    assert filled.index().revision == head.revision + 1
    filled.swap(2)
    assert is_right(filled.settle())


def test_a_replica_that_missed_purged_removals_reads_everything(filled: Scene) -> None:
    add(filled.store, removals(["image-29"]))
    add(filled.store, entries(700, 1))
    head = revision_log.newest(filled.store, NAME)
    assert head is not None
    assert compact(filled.store, head).purged == head.revision
    index = filled.settle()
    assert index.rows == 40
    assert "image-29" not in {hit.id for hit in search(index, "image", 29, top_k=100).hits}


@pytest.mark.skipif(not is_installed(), reason="the extra `search` is not installed")
def test_graphs_are_built_beside_the_answers(store: FlakyStore) -> None:
    scene = Scene(store, graph_from=3 * ROWS_AT_ONCE // 2)
    scene.swap(1)
    rows = entries(0, 2 * ROWS_AT_ONCE)
    add(store, rows[:ROWS_AT_ONCE])
    assert all(part.graph is None for part in scene.settle().parts)
    for start in range(ROWS_AT_ONCE, 2 * ROWS_AT_ONCE, 512):
        add(store, rows[start : start + 512])
        scene.follower.poll()
    index = scene.settle()
    assert any(part.graph is not None for part in index.parts)
    assert not search(index, "text", 1).exact
    assert search(index, "text", 1, exact=True).exact
    scene.swap(2)
    scene.follower.poll()
    while scene.follower.work():
        assert scene.index().version.number == 1
    assert any(part.graph is not None for part in scene.index().parts)


@pytest.mark.skipif(not is_installed(), reason="the extra `search` is not installed")
def test_fewer_rows_than_the_bound_remain_without_a_graph(store: FlakyStore) -> None:
    scene = Scene(store, graph_from=400)
    scene.swap(1)
    for start in range(0, 2000, 100):
        add(store, entries(start, 100))
        index = scene.settle()
        without = sum(part.live for part in index.parts if part.graph is None)
        assert without < 400
        assert (index.rows < 400) == all(part.graph is None for part in index.parts)


def test_no_response_mixes_two_versions_during_swaps(filled: Scene) -> None:
    stop, wrong, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            index = filled.index()
            seen.add(index.version.number)
            if not is_right(index):
                wrong.append(index.version.number)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    for number in range(2, 12):
        filled.swap(number)
        filled.settle()
    stop.set()
    for asker in askers:
        asker.join()
    assert wrong == []
    assert len(seen) > 3


def test_a_replica_that_starts_has_loaded_what_is_there(filled: Scene) -> None:
    other = Scene(filled.store)
    other.swap(1)
    other.follower.start()
    try:
        assert other.follower.wait_loaded(10)
        assert other.index().rows == 40
    finally:
        other.follower.stop()


def test_an_unavailable_store_leaves_collections_unloaded(filled: Scene) -> None:
    other = Scene(filled.store)
    filled.store.broken = "collections/"
    other.follower.start()
    try:
        assert not other.follower.wait_loaded(0.1)
        assert other.follower.alive
    finally:
        other.follower.stop()


def test_the_thread_follows_by_itself(filled: Scene) -> None:
    filled.follower.start()
    try:
        filled.swap(2)
        add(filled.store, entries(900, 1))
        filled.follower.wake()
        deadline = time.monotonic() + 60
        while (filled.index().version.number, filled.index().rows) != (2, 41):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert filled.follower.alive
    finally:
        filled.follower.stop()
    assert (filled.index().version.number, filled.index().rows) == (2, 41)


WITH_AUDIO = ModelSpec(width=6, modalities={"image": 5, "text": 4, "audio": 3})


def without_text(number: int) -> ServedVersion:
    """A version that has unlearned the only dataset with texts."""
    pairs = frozenset({ModalityPair(first="audio", second="image")})
    return replace(version(number, spec=WITH_AUDIO), pairs=pairs)


def test_rows_of_a_modality_that_was_unlearned_have_no_vectors(filled: Scene) -> None:
    filled.swap(2, without_text(2))
    index = filled.settle()
    assert ({part.contents.modality for part in index.parts}, index.rows) == ({"image"}, 30)
    assert index.not_learned == {"text": 10}
    snapshot = filled.follower.snapshot(NAME)
    assert snapshot is not None
    assert snapshot.rows == 40, "they count for limits"


def test_changes_while_a_modality_is_unlearned_are_found_once_it_is_learned_again(
    filled: Scene,
) -> None:
    filled.swap(2, without_text(2))
    filled.settle()
    as_text = Entry("image-1", "text", feature("text", 500), None)
    as_image = Entry("text-1", "image", feature("image", 500), None)
    add(filled.store, [*entries(90, 2, "text"), *removals(["text-0"]), as_text, as_image])
    without = filled.settle()
    assert (without.rows_of("image"), without.not_learned) == (30, {"text": 11})
    assert search(without, "image", 500).hits[0].id == "text-1"
    filled.swap(3)
    again = filled.settle()
    assert (again.version.number, again.not_learned) == (3, {})
    assert (again.rows_of("image"), again.rows_of("text")) == (30, 11)
    assert search(again, "text", 500, modalities=["text"]).hits[0].id == "image-1"
    assert search(again, "text", 90, modalities=["text"]).hits[0].id == "text-90"


def test_a_rollback_past_an_unlearning_reads_only_what_was_written_since(filled: Scene) -> None:
    one = filled.index().version
    filled.swap(2, without_text(2))
    filled.settle()
    reads = segment_reads(filled.store)
    filled.swap(1, one)
    index = filled.settle()
    assert (index.version.number, index.rows, index.not_learned) == (1, 40, {})
    assert segment_reads(filled.store) == reads
