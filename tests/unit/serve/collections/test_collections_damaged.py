"""A damaged collection is reported, and does not affect the others."""

import time

from workers.serve.collections.compaction import MOST_SEGMENTS
from workers.serve.collections.maintenance import Maintenance

from cmcl.storage import layout
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.collections.conftest import NamedCallers, Searching
from tests.unit.serve.collections.scene import NAME, Scene, add, entries, search
from workers.serve.collections import revision_log, writes

# Before all others, in the order in which they are looked at.
BROKEN = "a-broken-one"


def break_revision(store: FlakyStore) -> None:
    store.create(layout.collection_revision(BROKEN, 1), b'{"name": 7}')


def test_the_others_are_searched_and_the_damage_is_reported(
    store: FlakyStore, scene: Scene
) -> None:
    break_revision(store)
    add(store, entries(0, 3))
    index = scene.settle()
    assert search(index, "image", 1).hits[0].id == "image-1"
    assert set(scene.follower.damaged()) == {BROKEN}
    reason = scene.follower.damaged()[BROKEN]
    assert reason.startswith(f"collections/{BROKEN}/revisions/")
    assert store.uri not in reason


def test_a_damaged_segment_is_reported_with_the_results(store: FlakyStore, scene: Scene) -> None:
    add(store, entries(0, 3))
    scene.settle()
    head = add(store, entries(3, 3))
    store.put(layout.collection_segment(NAME, head.segments[-1].name), b"no Parquet")
    assert scene.settle().rows == 3
    snapshot = scene.follower.snapshot(NAME)
    assert snapshot is not None
    assert snapshot.is_damaged
    assert NAME in scene.follower.damaged()


def test_repaired_damage_is_no_longer_reported(store: FlakyStore, scene: Scene) -> None:
    break_revision(store)
    add(store, entries(0, 3))
    scene.settle()
    store.delete(layout.collection_revision(BROKEN, 1))
    scene.clock.now += 1000
    scene.follower.poll()
    assert scene.follower.damaged() == {}


def test_undamaged_collections_are_still_merged(store: FlakyStore) -> None:
    break_revision(store)
    maintenance = Maintenance(store)
    head = writes.create(store, writes.CollectionSpec(NAME, "m", None, "float32"))
    for number in range(MOST_SEGMENTS):
        head = add(store, entries(number, 1))
    for name in revision_log.collection_names(store):
        maintenance.sweep_safely(name)
    newest = revision_log.newest(store, NAME)
    assert newest is not None
    assert len(newest.segments) < len(head.segments)


def test_a_list_has_the_undamaged_ones_and_the_damage_is_reported(searching: Searching) -> None:
    break_revision(searching.store)
    deadline = time.monotonic() + 60
    while not (listed := searching.ask("GET", "").json())["damaged"]:
        assert time.monotonic() < deadline
    assert [each["id"] for each in listed["data"]] == ["things"]
    assert [each["id"] for each in listed["damaged"]] == [BROKEN]
    one = searching.ask("GET", f"/{BROKEN}")
    assert (one.status_code, one.json()["error"]["code"]) == (500, "collection_damaged")
    searching.access = NamedCallers()
    searching.app = searching.app_of(searching.args)
    assert searching.ask("GET", "", None, {"authorization": "bob"}).json()["damaged"] == []
