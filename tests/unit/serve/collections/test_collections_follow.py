"""Collections follow the model: vectors are computed again from features while the old ones answer."""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from tests.unit.serve.collections.scene import (
    EVERYONE,
    NAME,
    Scene,
    brute_force,
    create,
    embedded,
    entries,
    feature,
    removals,
    search,
)
from tests.unit.serve.served_versions import version
from workers.serve.collections import columns
from workers.serve.collections.searching import Searched
from workers.serve.collections.table import NoCollection, Row
from workers.serve.versions.loading import ServedVersion

BOTH = [("image", n) for n in range(30)] + [("text", n) for n in range(10)]


def is_right(searched: Searched) -> bool:
    """Whether what it finds is what its own version finds by brute force."""
    query_E = embedded(searched.version, "text", 300)
    found = [hit.id for hit in search(searched, "text", 300).hits]
    return found == brute_force(searched, query_E, BOTH)


in_each_type = pytest.mark.parametrize("filled", ["float32", "bit"], indirect=True)


@pytest.fixture
def filled(scene: Scene, request: pytest.FixtureRequest) -> Scene:
    create(scene.store, vector_type=getattr(request, "param", "float32"))
    scene.add(entries(0, 20) + entries(0, 10, "text"))
    scene.add(entries(20, 10))
    scene.settle()
    return scene


@in_each_type
def test_vectors_are_those_of_the_new_version_after_a_swap(filled: Scene) -> None:
    before = filled.searched()
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
        filled.follower.poll()
        numbers.append(filled.searched().version.number)
        assert is_right(filled.searched())
    assert set(numbers) == {1}
    filled.follower.poll()
    assert filled.searched().version.number == 2


@in_each_type
def test_what_is_written_while_vectors_are_made_is_found_at_once(filled: Scene) -> None:
    filled.swap(2)
    filled.follower.poll()
    assert filled.follower.work()
    filled.add([*entries(500, 1), *removals(["image-0"])])
    filled.follower.poll()
    during = filled.searched()
    assert during.version.number == 1
    assert search(during, "image", 500).hits[0].id == "image-500"
    after = filled.settle()
    assert after.version.number == 2
    assert search(after, "image", 500).hits[0].id == "image-500"
    assert after.rows() == during.rows() == 40


@in_each_type
def test_a_roll_back_answers_at_once_with_what_was_written_since(filled: Scene) -> None:
    filled.swap(2)
    filled.settle()
    filled.add(entries(500, 1))
    filled.swap(1)
    filled.follower.poll()
    assert filled.searched().version.number == 1
    assert search(filled.searched(), "image", 500).hits[0].id == "image-500"
    assert filled.searched().rows() == 41


def test_a_newer_version_still_waits_for_the_one_that_is_being_made(filled: Scene) -> None:
    filled.swap(2)
    filled.follower.poll()
    filled.follower.work()
    filled.swap(3)
    filled.follower.poll()
    numbers = [1]
    while numbers[-1] != 3:
        filled.follower.work()
        filled.follower.poll()
        numbers.append(filled.searched().version.number)
    assert sorted(set(numbers)) == [1, 2, 3]
    assert numbers == sorted(numbers)


def test_a_second_replica_makes_no_vectors_and_searches_what_the_first_one_made(
    filled: Scene,
) -> None:
    other = Scene(filled.store, name="two")
    other.swap(1)
    assert other.settle().rows() == 40
    for each in (filled, other):
        each.swap(2)
        each.follower.poll()
    assert not other.follower.work()
    filled.settle()
    other.follower.poll()
    assert other.searched().version.number == 2
    assert is_right(other.searched())


def test_vectors_of_a_dead_builder_are_finished_by_another(
    filled: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.swap(2)
    filled.follower.poll()
    filled.follower.work()  # And then it dies.
    other = Scene(filled.store, name="two")
    other.swap(2)
    assert other.settle().version.number == 1
    late = time.time() + columns._LEASE_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: late)
    other.settle()
    assert other.searched().version.number == 2
    assert is_right(other.searched())


def test_two_writers_of_the_same_new_id_leave_it_once(scene: Scene) -> None:
    create(scene.store)
    scene.settle()
    done: list[int] = []

    def write(writer: int) -> None:
        done.extend(
            scene.add([*entries(10 * writer + change, 1), *entries(999, 1)]) for change in range(3)
        )

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(2, 14))
    assert scene.settle().rows() == 13


def test_a_repeated_write_undoes_nothing_that_came_after_it(filled: Scene) -> None:
    first = filled.add([Row("x", "image", feature("image", 1), '{"n": 1}')], mark="one")
    filled.add([Row("x", "image", feature("image", 2), '{"n": 2}')], mark="two")
    assert filled.add([Row("x", "image", feature("image", 1), '{"n": 1}')], mark="one") > first
    (hit,) = [hit for hit in search(filled.settle(), "image", 2, top_k=50).hits if hit.id == "x"]
    assert hit.payload == '{"n": 2}'


def test_a_write_to_a_deleted_collection_is_refused_also_if_the_name_is_used_again(
    filled: Scene,
) -> None:
    table = filled.table
    revision = table.read().head.revision
    filled.registry.delete(NAME, EVERYONE)
    with pytest.raises(NoCollection):
        table.write(entries(1, 1), lambda *_: None)
    again = create(filled.store)
    assert again.table.read().head.revision > revision
    assert filled.settle().rows() == 0


def test_a_repeated_deletion_leaves_a_new_collection(filled: Scene) -> None:
    filled.registry.delete(NAME, EVERYONE, mark="one")
    create(filled.store)
    filled.registry.delete(NAME, EVERYONE, mark="one")
    assert filled.registry.existing(NAME, EVERYONE).head.ended_at is None


WRITER = """
import sys
from workers.serve.collections.table import CollectionTable, Row
import numpy as np
table = CollectionTable(sys.argv[1])
for number in range(10_000):
    row = Row(f"n-{number}", "image", np.ones(5, np.float32), None)
    print(number, table.write([row], lambda name, modality, f_BF: np.ones((len(f_BF), 6), np.float32)), flush=True)
"""


def test_a_killed_writer_loses_nothing_that_was_acknowledged(filled: Scene) -> None:
    before = filled.table.read().head.revision
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, filled.table.uri], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline() for _ in range(5)]
        writer.kill()
        acknowledged += writer.stdout.readlines()
    whole = [each.split() for each in acknowledged if each.endswith("\n")]
    state = filled.table.read()
    ids = state.dataset.to_table(columns=["id"], filter="id LIKE 'n-%'")["id"].to_pylist()
    assert {f"n-{number}" for number, _ in whole} <= set(ids)
    assert len(ids) == len(set(ids)) == state.head.revision - before


def test_an_index_finds_what_comparing_all_finds(
    filled: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "INDEX_FROM_ROWS", 100)
    filled.add(entries(1000, 400))
    filled.swap(2)
    filled.settle()
    filled.add(entries(2000, 3))
    searched = filled.settle()
    found = search(searched, "text", 300)
    exact = search(searched, "text", 300, exact=True)
    assert (found.exact, exact.exact) == (False, True)
    assert [hit.id for hit in found.hits] == [hit.id for hit in exact.hits]


@in_each_type
def test_no_response_mixes_two_versions_during_swaps(filled: Scene) -> None:
    stop, wrong, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            searched = filled.searched()
            seen.add(searched.version.number)
            if not is_right(searched):
                wrong.append(searched.version.number)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for number in range(2, 6):
        filled.swap(number)
        filled.settle()
    stop.set()
    for asker in askers:
        asker.join()
    assert wrong == []
    assert len(seen) > 1


def test_the_thread_follows_by_itself(filled: Scene) -> None:
    filled.follower.start()
    try:
        filled.swap(2)
        filled.add(entries(900, 1))
        filled.follower.wake()
        deadline = time.monotonic() + 60
        while (filled.searched().version.number, filled.searched().rows()) != (2, 41):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert filled.follower.alive
    finally:
        filled.follower.stop()


def test_a_version_with_other_widths_is_not_followed(filled: Scene) -> None:
    other = version(2, spec=ModelSpec(width=6, modalities={"image": 9, "text": 4}))
    filled.swap(2, other)
    filled.settle()
    problem = filled.follower.snapshots()[NAME].problem
    assert "features of modality 'image' have width 5" in (problem or "")
    assert filled.searched().version.number == 1


WITH_AUDIO = ModelSpec(width=6, modalities={"image": 5, "text": 4, "audio": 3})


def without_text(number: int) -> ServedVersion:
    """A version that has unlearned the only dataset with texts."""
    pairs = frozenset({ModalityPair(first="audio", second="image")})
    return replace(version(number, spec=WITH_AUDIO), pairs=pairs)


def test_items_of_a_modality_that_was_unlearned_have_no_vectors_until_it_is_learned_again(
    filled: Scene,
) -> None:
    filled.swap(2, without_text(2))
    searched = filled.settle()
    assert (searched.rows(), searched.rows("text")) == (30, 0)
    assert dict(searched.modalities) == {"image": 30, "text": 10}
    filled.add(entries(90, 2, "text"))
    filled.swap(3)
    again = filled.settle()
    assert (again.version.number, again.rows("text")) == (3, 12)
    assert search(again, "text", 90, modalities=["text"]).hits[0].id == "text-90"


def test_a_version_that_embeds_none_of_many_items_is_complete_without_an_index(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "INDEX_FROM_ROWS", 50)
    scene.add(entries(0, 60, "text"))
    scene.settle()
    scene.settle()  # Also its index.
    scene.swap(2, without_text(2))
    searched = scene.settle()
    assert (searched.version.number, searched.rows()) == (2, 0)
    assert scene.follower.snapshots()[NAME].problem is None
    assert not scene.follower.work()


def test_a_collection_of_a_deleted_model_is_not_searched(filled: Scene) -> None:
    filled.live.forget("m")
    filled.follower.poll()
    assert filled.follower.snapshots()[NAME].searched is None


def test_an_unavailable_store_leaves_collections_unloaded(filled: Scene) -> None:
    other = Scene(filled.store)
    filled.store.broken = "collections/"
    other.follower.start()
    try:
        assert not other.follower.wait_loaded(0.1)
        assert other.follower.alive
    finally:
        other.follower.stop()
