"""Limits on collections and rows, and the errors above them."""

from typing import Any

import pytest

from tests.unit.serve.collections.conftest import NamedCallers, Searching
from tests.unit.serve.collections.scene import NAME, Scene, entries, feature, removals, spec
from workers.serve.collections.collections import AllFull, CollectionFull, Collections
from workers.serve.collections.table import State
from workers.serve.settings import CollectionLimits

QUERY = {"modality": "image", "feature": feature("image", 0).tolist()}


def items(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"i{n}", "modality": "image", "feature": feature("image", n).tolist()}
        for n in range(first, first + count)
    ]


def make(searching: Searching, name: str, caller: str = "") -> int:
    headers = {"authorization": caller} if caller else {}
    status: int = searching.ask("PUT", f"/{name}", {"model": "scenes"}, headers).status_code
    return status


def test_one_owner_has_so_many_collections(searching: Searching) -> None:
    assert [make(searching, name) for name in ("b", "c")] == [200, 200]
    response = searching.ask("PUT", "/d", {"model": "scenes"})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "too_many_collections")
    assert "you have 3 collections" in response.json()["error"]["message"]
    assert make(searching, "b") == 200, "one that is there is no other"
    assert searching.ask("DELETE", "/b").status_code == 200
    assert make(searching, "d") == 200
    searching.access = NamedCallers()
    searching.app = searching.app_of(searching.args)
    assert [make(searching, f"a{n}", "alice") for n in range(4)] == [200, 200, 200, 507]
    assert make(searching, "b0", "bob") == 200


def test_a_collection_and_all_together_have_so_many_rows(searching: Searching) -> None:
    make(searching, "more")
    for start in range(0, 60, 20):
        revision = searching.add("things", items(start, 20))
    searching.found("things", revision, query=QUERY)
    full = searching.ask("POST", "/things/items", {"items": items(60, 1)})
    assert (full.status_code, full.json()["error"]["code"]) == (400, "collection_full")
    revision = searching.add("more", items(0, 20))
    searching.found("more", revision, query=QUERY)
    response = searching.ask("POST", "/more/items", {"items": items(20, 1)})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "collections_full")
    assert "all together 80" in response.json()["error"]["message"]
    assert searching.ask("POST", "/things/items/delete", {"ids": ["i1"]}).status_code == 200


def limited(scene: Scene, **limits: int) -> Collections:
    wide = CollectionLimits(collections=9, rows=60, all_rows=80)
    return Collections(scene.registry, scene.follower, wide._replace(**limits))


def filled(scene: Scene, rows: int, **fields: object) -> State:
    """A collection with so many rows, which the replica has read."""
    table = scene.registry.create(spec(**fields)).table
    if rows:
        table.write(entries(0, rows), lambda *_: None)
    scene.follower.poll()
    return table.read()


def test_what_was_replaced_counts_once_and_what_was_removed_makes_room(scene: Scene) -> None:
    state = filled(scene, 30)
    collections = limited(scene)
    scene.add(entries(0, 30))
    scene.settle()
    collections.check_room(state, 30)
    with pytest.raises(CollectionFull, match="has 30 rows, and 31 more"):
        collections.check_room(state, 31)
    scene.add(removals(["image-1", "image-2"]))
    scene.settle()
    collections.check_room(state, 32)


def test_rows_count_before_they_have_vectors_and_not_after_a_deletion(scene: Scene) -> None:
    before = filled(scene, 50)
    assert before.columns == ()
    other = filled(scene, 0, name="other")
    collections = limited(scene)
    collections.check_room(other, 30)
    with pytest.raises(AllFull):
        collections.check_room(other, 31)
    collections.delete(NAME, lambda _: True)
    scene.follower.poll()
    collections.check_room(other, 60)


def test_an_owner_who_fills_all_that_is_free_leaves_room_for_others(scene: Scene) -> None:
    mallory = filled(scene, 40, name="of-mallory", owner="mallory")
    collections = limited(scene, all_rows=50)
    with pytest.raises(AllFull, match="permitted are 50 for all, 40 of them yours"):
        collections.check_room(mallory, 1)
    eve = filled(scene, 0, name="of-eve", owner="eve")
    collections.check_room(eve, 8)
    with pytest.raises(AllFull, match="of them yours"):
        collections.check_room(eve, 9)
    operators = filled(scene, 0, name="of-nobody")
    collections.check_room(operators, 10)
    with pytest.raises(AllFull, match="permitted are 50 for all: remove"):
        collections.check_room(operators, 11)
