"""Collections follow the model: vectors are computed again from features while the old ones answer."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
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


def test_items_of_a_modality_that_is_newer_than_what_is_searched_are_found_after_the_swap(
    filled: Scene,
) -> None:
    pairs = frozenset({ModalityPair(first="audio", second="image"), *version(1).pairs})
    filled.swap(2, replace(version(2, spec=WITH_AUDIO), pairs=pairs))
    filled.follower.poll()
    sound = Row("audio-1", "audio", np.ones(3, np.float32), None)
    filled.add([sound])
    filled.follower.poll()
    assert filled.searched().version.number == 1
    after = filled.settle()
    assert (after.version.number, after.rows("audio"), after.rows()) == (2, 1, 41)


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
        other.threads.end()
