"""How many collections and rows there may be, and what who passes a limit is told."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.serve.search.conftest import NamedCallers, Searching
from tests.unit.serve.search.scene import NAME, Scene, add, entries, feature, removals
from workers.serve.search.held import Shown
from workers.serve.search.limits import Limits
from workers.serve.search.memory import rows_bytes
from workers.serve.search.room import (
    AllFull,
    CollectionFull,
    Room,
    RowsUncounted,
    TooManyCollections,
)
from workers.serve.search.stored import ledger
from workers.serve.search.stored.compaction import compact
from workers.serve.search.stored.revision import Revision
from workers.serve.search.stored.segments import texts_bytes_of
from workers.serve.settings import ServeArgs
from workers.storage import layout

LIMITS = Limits(collections=3, rows=60, all_rows=80, all_bytes=1 << 20)


def items(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"i{n}", "modality": "image", "feature": feature("image", n).tolist()}
        for n in range(first, first + count)
    ]


def make(searching: Searching, name: str, caller: str = "") -> int:
    headers = {"authorization": caller} if caller else {}
    status: int = searching.ask("PUT", f"/{name}", {"model": "scenes"}, headers).status_code
    return status


def head_of(scene: Scene) -> Revision:
    head = ledger.newest(scene.store, NAME)
    assert head is not None
    return head


def shown_of(scene: Scene) -> Shown:
    shown = scene.follower.shown(NAME)
    assert shown is not None
    return shown


@pytest.fixture
def room(scene: Scene) -> Room:
    return Room(LIMITS, scene.follower.all_shown)


def test_one_owner_has_so_many_collections(searching: Searching) -> None:
    assert [make(searching, name) for name in ("b", "c")] == [200, 200]
    response = searching.ask("PUT", "/d", {"model": "scenes"})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "too_many_collections")
    assert "3 collections of yours" in response.json()["error"]["message"]
    assert make(searching, "b") == 200, "one that is there is no other"


def test_who_deletes_one_may_make_another_at_once(searching: Searching) -> None:
    assert [make(searching, name) for name in ("b", "c", "d")] == [200, 200, 507]
    assert searching.ask("DELETE", "/b").status_code == 200
    assert make(searching, "d") == 200


def test_an_owners_collections_are_no_others_limit(searching: Searching) -> None:
    searching.door = NamedCallers()
    searching.app = searching.app_of(searching.args)
    assert [make(searching, f"a{n}", "alice") for n in range(4)] == [200, 200, 200, 507]
    assert make(searching, "b0", "bob") == 200


def test_a_burst_is_counted_before_it_is_read(room: Room) -> None:
    for name in ("a", "b", "c"):
        with room.for_one_more(name, "alice"):
            pass
    with pytest.raises(TooManyCollections), room.for_one_more("d", "alice"):
        pass


def test_one_that_could_not_be_made_is_not_counted(room: Room) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), room.for_one_more("a", "alice"):
            raise ZeroDivisionError
    for name in ("b", "c", "d"):
        with room.for_one_more(name, "alice"):
            pass


def test_all_collections_together_hold_so_many_rows(searching: Searching) -> None:
    make(searching, "more")
    for start in range(0, 60, 20):
        revision = searching.add("things", items(start, 20))
    query = {"modality": "image", "feature": feature("image", 0).tolist()}
    searching.found("things", revision, query=query)
    revision = searching.add("more", items(0, 20))
    searching.found("more", revision, query=query)
    response = searching.ask("POST", "/more/items", {"items": items(20, 1)})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "collections_full")
    assert "80 rows together" in response.json()["error"]["message"]


def test_rows_are_counted_where_there_is_no_index_yet(scene: Scene, room: Room) -> None:
    """As after a restart: nothing was read, and the whole limit could be written once more."""
    head = add(scene.store, entries(0, 60))
    with pytest.raises(RowsUncounted, match="may have 60 of 60 rows"):
        room.check_rows(head, 1)
    scene.settle()
    with pytest.raises(CollectionFull, match="has 60 rows, and 1 more"):
        room.check_rows(head, 1)


def test_what_was_removed_makes_room_once_it_is_read(scene: Scene, room: Room) -> None:
    add(scene.store, entries(0, 60))
    scene.settle()
    head = add(scene.store, removals(["image-1", "image-2"]))
    with pytest.raises(RowsUncounted):
        room.check_rows(head, 2)
    scene.settle()
    room.check_rows(head_of(scene), 2)
    with pytest.raises(CollectionFull):
        room.check_rows(head, 3)


def test_what_was_replaced_counts_once(scene: Scene, room: Room) -> None:
    for _ in range(3):
        head = add(scene.store, entries(0, 30))
    scene.settle()
    room.check_rows(head, 30)


def test_rows_of_another_collection_count_before_they_are_read(scene: Scene) -> None:
    add(scene.store, entries(0, 50))
    scene.swap(1)
    scene.follower.look()
    room = Room(LIMITS, scene.follower.all_shown)
    assert scene.follower.rows() == 0
    other = head_of(scene).model_copy(update={"name": "other", "segments": ()})
    room.check_rows(other, 30)
    with pytest.raises(AllFull):
        room.check_rows(other, 31)


def test_bytes_are_counted_as_after_the_next_swap(scene: Scene) -> None:
    """The index of the version before stays: no swap takes a replica beyond what was promised."""
    add(scene.store, entries(0, 50, payload='{"a": 1}'))
    before = scene.settle()
    room = Room(LIMITS, scene.follower.all_shown)
    counted = room.bytes()
    assert counted == before.contents_bytes + 2 * before.vectors_bytes
    scene.swap(2)
    scene.settle()
    assert room.bytes() == counted


def test_what_is_written_is_counted_as_it_is_held(scene: Scene) -> None:
    new = entries(0, 50, payload='{"a": "some words"}')
    add(scene.store, new)
    scene.settle()
    room = Room(LIMITS, scene.follower.all_shown)
    width = scene.index().version.spec.width
    expected = rows_bytes(width, [each.id for each in new], [each.payload for each in new])
    assert 0.5 * expected < room.bytes() <= expected


LISTED = json.dumps({"a": [1] * 500}, separators=(",", ":"))
OWN_FIELDS = json.dumps({f"{n:02}": 1 for n in range(100)}, separators=(",", ":"))


@pytest.mark.parametrize("payload", [LISTED, OWN_FIELDS, None], ids=["a list", "fields", "none"])
def test_rows_take_no_more_than_is_counted_before_they_are_read(
    scene: Scene, payload: str | None
) -> None:
    """Whether they are merged, or as they were written."""
    for number in range(3):
        add(scene.store, entries(20 * number, 20, payload=payload))
    head = head_of(scene)
    merged = compact(scene.store, head)
    index = scene.settle()
    unread = [replace(shown_of(scene), index=None, revision=each) for each in (head, merged)]
    taken = index.contents_bytes + 2 * index.vectors_bytes
    for each in unread:
        assert taken <= each.unread_bytes < 3 * taken


@pytest.mark.parametrize(
    "why", [{"is_damaged": True}, {"width": None}], ids=["damaged", "no model"]
)
def test_what_nobody_is_going_to_read_takes_no_room(scene: Scene, why: dict[str, Any]) -> None:
    add(scene.store, entries(0, 50))
    scene.settle()
    shown = replace(shown_of(scene), index=None)
    tight = Room(LIMITS._replace(all_bytes=100), lambda: {NAME: replace(shown, **why)})
    tight.check_bytes(100)
    with pytest.raises(RowsUncounted):
        Room(LIMITS._replace(all_bytes=100), lambda: {NAME: shown}).check_bytes(100)


def test_a_segment_of_an_older_release_is_counted_by_its_file(scene: Scene) -> None:
    (segment,) = add(scene.store, entries(0, 50, payload='{"a": 1}')).segments
    time, mark, _ = segment.name.split("-")
    older = segment.model_copy(update={"name": f"{time}-{mark}.parquet"})
    assert texts_bytes_of(older) == segment.bytes


def test_bytes_that_are_not_read_yet_are_asked_for_again(scene: Scene) -> None:
    add(scene.store, entries(0, 50))
    scene.settle()
    used = Room(LIMITS, scene.follower.all_shown).bytes()
    tight = Room(LIMITS._replace(all_bytes=used + 10), scene.follower.all_shown)
    tight.check_bytes(10)
    with pytest.raises(AllFull, match=f"take {used} bytes of memory, and these items 11"):
        tight.check_bytes(11)
    add(scene.store, entries(50, 1))
    scene.store.broken = layout.collection_segments(NAME)
    scene.follower.look()
    with pytest.raises(RowsUncounted, match="still being read"):
        tight.check_bytes(10)


def test_too_many_bytes_are_refused_before_anything_is_written(searching: Searching) -> None:
    args = searching.args.model_copy(update={"max_collections_bytes": 3000})
    searching.close()
    searching.args = args
    searching.open()
    searching.add("things", items(0, 5))
    revision = ledger.newest_number(searching.store, "things")
    response = searching.ask("POST", "/things/items", {"items": items(5, 20)})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "collections_full")
    assert "over the limit of 3000" in response.json()["error"]["message"]
    assert "max_collections_bytes" in response.json()["error"]["message"]
    assert ledger.newest_number(searching.store, "things") == revision
    assert searching.ask("POST", "/things/items/delete", {"ids": ["i1"]}).status_code == 200


def test_the_largest_collection_must_fit() -> None:
    with pytest.raises(ValueError, match="could never be filled"):
        ServeArgs(store="file:///x", max_collection_rows=11, max_searched_rows=10)
