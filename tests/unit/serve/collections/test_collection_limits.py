"""Limits on collections and rows, and the errors above them."""

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
from workers.serve.collections.compaction import compact
from workers.serve.collections.indexer import CollectionSnapshot
from workers.serve.collections.quota import (
    AllFull,
    CollectionFull,
    CollectionsQuota,
    RowsUncounted,
    TooManyCollections,
)
from workers.serve.collections.revision_log import Revision
from workers.serve.collections.segments import rows_bytes

from cmcl.storage import layout
from tests.unit.serve.collections.conftest import NamedCallers, Searching
from tests.unit.serve.collections.scene import (
    NAME,
    Clock,
    Scene,
    add,
    create,
    entries,
    feature,
    removals,
)
from workers.serve.collections import revision_log
from workers.serve.settings import CollectionLimits

LIMITS = CollectionLimits(collections=3, rows=60, all_rows=80, all_bytes=1 << 20)


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
    head = revision_log.newest(scene.store, NAME)
    assert head is not None
    return head


def shown_of(scene: Scene) -> CollectionSnapshot:
    snapshot = scene.follower.snapshot(NAME)
    assert snapshot is not None
    return snapshot


@pytest.fixture
def quota(scene: Scene) -> CollectionsQuota:
    return CollectionsQuota(LIMITS, scene.follower.snapshots)


def test_one_owner_has_so_many_collections(searching: Searching) -> None:
    assert [make(searching, name) for name in ("b", "c")] == [200, 200]
    response = searching.ask("PUT", "/d", {"model": "scenes"})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "too_many_collections")
    assert "you have 3 collections" in response.json()["error"]["message"]
    assert make(searching, "b") == 200, "one that is there is no other"


def test_one_can_be_created_at_once_after_a_deletion(searching: Searching) -> None:
    assert [make(searching, name) for name in ("b", "c", "d")] == [200, 200, 507]
    assert searching.ask("DELETE", "/b").status_code == 200
    assert make(searching, "d") == 200


def test_an_owners_collections_are_no_others_limit(searching: Searching) -> None:
    searching.access = NamedCallers()
    searching.app = searching.app_of(searching.args)
    assert [make(searching, f"a{n}", "alice") for n in range(4)] == [200, 200, 200, 507]
    assert make(searching, "b0", "bob") == 200


def test_a_burst_is_counted_before_it_is_read(quota: CollectionsQuota) -> None:
    for name in ("a", "b", "c"):
        with quota.for_one_more(name, "alice"):
            pass
    with pytest.raises(TooManyCollections), quota.for_one_more("d", "alice"):
        pass


def test_one_that_could_not_be_made_is_not_counted(quota: CollectionsQuota) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), quota.for_one_more("a", "alice"):
            raise ZeroDivisionError
    for name in ("b", "c", "d"):
        with quota.for_one_more(name, "alice"):
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
    assert "all together 80" in response.json()["error"]["message"]


def test_rows_are_counted_where_there_is_no_index_yet(
    scene: Scene, quota: CollectionsQuota
) -> None:
    """As after a restart, when nothing is read yet: the limit must not start from zero."""
    head = add(scene.store, entries(0, 60))
    with pytest.raises(RowsUncounted, match="may have 60 of 60 rows"):
        quota.check(head, 1, 0)
    scene.settle()
    with pytest.raises(CollectionFull, match="has 60 rows, and 1 more"):
        quota.check(head, 1, 0)


def test_what_was_removed_makes_room_once_it_is_read(scene: Scene, quota: CollectionsQuota) -> None:
    add(scene.store, entries(0, 60))
    scene.settle()
    head = add(scene.store, removals(["image-1", "image-2"]))
    with pytest.raises(RowsUncounted):
        quota.check(head, 2, 0)
    scene.settle()
    quota.check(head_of(scene), 2, 0)
    with pytest.raises(CollectionFull):
        quota.check(head, 3, 0)


def test_what_was_replaced_counts_once(scene: Scene, quota: CollectionsQuota) -> None:
    for _ in range(3):
        head = add(scene.store, entries(0, 30))
    scene.settle()
    quota.check(head, 30, 0)


def test_rows_of_another_collection_count_before_they_are_read(scene: Scene) -> None:
    add(scene.store, entries(0, 50))
    scene.swap(1)
    scene.follower.poll()
    quota = CollectionsQuota(LIMITS, scene.follower.snapshots)
    assert scene.follower.rows() == 0
    other = head_of(scene).model_copy(update={"name": "other", "segments": ()})
    quota.check(other, 30, 0)
    with pytest.raises(AllFull):
        quota.check(other, 31, 0)


def test_bytes_are_counted_as_after_the_next_swap(scene: Scene) -> None:
    """The previous version's index stays during a swap, so a swap must fit into the limit too."""
    add(scene.store, entries(0, 50, payload='{"a": 1}'))
    before = scene.settle()
    quota = CollectionsQuota(LIMITS, scene.follower.snapshots)
    counted = quota.bytes()
    assert counted == before.contents_bytes + 3 * before.vectors_bytes
    scene.swap(2)
    scene.settle()
    assert quota.bytes() == counted


def test_what_is_written_is_counted_as_it_is_held(scene: Scene) -> None:
    new = entries(0, 50, payload='{"a": "some words"}')
    add(scene.store, new)
    scene.settle()
    quota = CollectionsQuota(LIMITS, scene.follower.snapshots)
    width = scene.index().version.spec.width
    expected = rows_bytes(width, [each.id for each in new], [each.payload for each in new])
    assert 0.5 * expected < quota.bytes() <= expected


LISTED = json.dumps({"a": [1] * 500}, separators=(",", ":"))
OWN_FIELDS = json.dumps({f"{n:02}": 1 for n in range(100)}, separators=(",", ":"))


@pytest.mark.parametrize("payload", [LISTED, OWN_FIELDS, None], ids=["a list", "fields", "none"])
def test_rows_use_at_most_the_memory_counted_before_the_read(
    scene: Scene, payload: str | None
) -> None:
    """Both for merged segments and for segments as written."""
    for number in range(3):
        add(scene.store, entries(20 * number, 20, payload=payload))
    head = head_of(scene)
    merged = compact(scene.store, head)
    index = scene.settle()
    unread = [replace(shown_of(scene), index=None, revision=each) for each in (head, merged)]
    taken = index.contents_bytes + 3 * index.vectors_bytes
    for each in unread:
        assert taken <= each.unread_bytes < 3 * taken


@pytest.mark.parametrize(
    "why", [{"is_damaged": True}, {"width": None}], ids=["damaged", "no model"]
)
def test_rows_that_will_not_be_read_do_not_count(scene: Scene, why: dict[str, Any]) -> None:
    add(scene.store, entries(0, 50))
    scene.settle()
    snapshot = replace(shown_of(scene), index=None)
    limits, head = LIMITS._replace(all_bytes=100, rows=100, all_rows=100), head_of(scene)
    CollectionsQuota(limits, lambda: {NAME: replace(snapshot, **why)}).check(head, 1, 100)
    with pytest.raises(RowsUncounted):
        CollectionsQuota(limits, lambda: {NAME: snapshot}).check(head, 1, 100)


def test_unread_bytes_reject_a_write_for_now(scene: Scene) -> None:
    add(scene.store, entries(0, 50))
    scene.settle()
    used = CollectionsQuota(LIMITS, scene.follower.snapshots).bytes()
    limits = LIMITS._replace(all_bytes=used + 10)
    tight = CollectionsQuota(limits, scene.follower.snapshots)
    tight.check(head_of(scene), 1, 10)
    with pytest.raises(AllFull, match=f"have {used} bytes in memory, .* and these items 11"):
        tight.check(head_of(scene), 1, 11)
    add(scene.store, entries(50, 1))
    scene.store.broken = layout.collection_segments(NAME)
    scene.follower.poll()
    with pytest.raises(RowsUncounted, match="still being read"):
        tight.check(head_of(scene), 1, 10)


def owned(name: str, owner: str | None, like: CollectionSnapshot, times: int) -> CollectionSnapshot:
    """A collection of so many rows, already read."""
    revision = like.revision.model_copy(update={"name": name, "owner": owner})
    assert like.index is not None
    parts = like.index.parts * times
    return replace(like, revision=revision, index=replace(like.index, parts=parts))


def test_an_owner_who_fills_all_that_is_free_leaves_room_for_others(scene: Scene) -> None:
    add(scene.store, entries(0, 10, payload='{"a": 1}'))
    scene.settle()
    one = shown_of(scene)
    limits = CollectionLimits(sys.maxsize, sys.maxsize, 10_000, 1000 * one.read_bytes_total)
    snapshot: dict[str, CollectionSnapshot] = {}
    quota = CollectionsQuota(limits, lambda: snapshot)

    def fill(owner: str | None) -> int:
        for times in range(1, 1002):
            mine = owned(f"of-{owner}", owner, one, times)
            try:
                quota.check(mine.revision, 10, one.read_bytes_total)
            except AllFull:
                return times
            snapshot[mine.revision.name] = mine
        raise AssertionError("there is no limit")

    assert fill("mallory") == pytest.approx(800, abs=2)
    with pytest.raises(AllFull, match="for yours at this moment, so that other owners can add"):
        quota.check(snapshot["of-mallory"].revision, 10, one.read_bytes_total)
    assert fill("eve") == pytest.approx(160, abs=3)
    quota.check(owned("of-bob", "bob", one, 1).revision, 10, one.read_bytes_total)
    assert fill(None) == pytest.approx(40, abs=3), "the operator may have what is left"


def test_writes_count_before_they_are_read(scene: Scene) -> None:
    """Even if many arrive before the follower has read the first of them."""
    head = head_of_new(scene)
    clock = Clock()
    limits = LIMITS._replace(all_bytes=1000)
    quota = CollectionsQuota(limits, scene.follower.snapshots, clock)
    with quota.writing(head, 20, 400) as done:
        with quota.writing(head, 20, 400), pytest.raises(RowsUncounted, match="800 of 1000"):
            quota.check(head, 1, 300)
        quota.check(head, 1, 300)
        done(head.model_copy(update={"revision": head.revision + 1}))
    with pytest.raises(RowsUncounted, match="may have 20 of 60 rows"):
        quota.check(head, 41, 0)
    with pytest.raises(RowsUncounted, match="400 of 1000"):
        quota.check(head, 1, 700)
    clock.now = 601
    quota.check(head, 1, 700)


def test_a_write_is_counted_once_when_it_is_read(scene: Scene) -> None:
    head = head_of_new(scene)
    quota = CollectionsQuota(LIMITS, scene.follower.snapshots)
    with quota.writing(head, 40, 100) as done:
        done(add(scene.store, entries(0, 40)))
    scene.settle()
    quota.check(head_of(scene), 20, 0)
    with pytest.raises(CollectionFull):
        quota.check(head_of(scene), 21, 0)


def head_of_new(scene: Scene) -> Revision:
    head = create(scene.store)
    scene.follower.poll()
    return head


def test_too_many_bytes_are_refused_before_anything_is_written(searching: Searching) -> None:
    args = searching.args.model_copy(update={"max_collections_bytes": 3000})
    searching.close()
    searching.args = args
    searching.open()
    searching.add("things", items(0, 5))
    revision = revision_log.newest_number(searching.store, "things")
    response = searching.ask("POST", "/things/items", {"items": items(5, 20)})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "collections_full")
    assert "permitted are 3000 for all" in response.json()["error"]["message"]
    assert "max_collections_bytes" in response.json()["error"]["message"]
    assert revision_log.newest_number(searching.store, "things") == revision
    assert searching.ask("POST", "/things/items/delete", {"ids": ["i1"]}).status_code == 200
