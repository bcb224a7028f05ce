"""A damaged collection is reported; nothing of it is removed, and others are not affected."""

import time
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pytest

from cmcl.contract.errors import InvalidVersion
from tests.unit.serve.collections.conftest import NamedCallers, Searching
from tests.unit.serve.collections.scene import NAME, Scene, entries, feature, search, spec
from tests.unit.serve.collections.test_collection_routes import image_query, item
from workers.serve.collections.searching import SearchQuery
from workers.serve.collections.table import CollectionTable

# Before all others, in the order in which they are looked at.
BROKEN = "a-broken-one"


def newest(table: CollectionTable, folder: str, suffix: str) -> Path:
    files = Path(table.uri, folder).glob(f"*{suffix}")
    return max(files, key=lambda each: each.stat().st_mtime_ns)


def without_data(table: CollectionTable) -> None:
    newest(table, "data", ".lance").unlink()


def with_other_data(table: CollectionTable) -> None:
    newest(table, "data", ".lance").write_bytes(b"no table")


def with_another_manifest(table: CollectionTable) -> None:
    newest(table, "_versions", ".manifest").write_bytes(b"no manifest")


def before_its_last_write(table: CollectionTable) -> None:
    while table.read().head.revision > 1:
        newest(table, "_versions", ".manifest").unlink()


def without_head(table: CollectionTable) -> None:
    lance.dataset(table.uri).delete("id = ''")


def with_a_changed_head(table: CollectionTable) -> None:
    later = table.read().head.model_copy(update={"revision": 7})
    text = later.model_dump_json().replace("'", "''")
    lance.dataset(table.uri).update({"payload": f"'{text}'"}, where="id = ''")


def with_another_head(table: CollectionTable) -> None:
    lance.dataset(table.uri).update({"payload": "'{\"name\": 7}'"}, where="id = ''")


DAMAGE = [
    without_data,
    with_other_data,
    with_another_manifest,
    without_head,
    with_a_changed_head,
    with_another_head,
]


def files_of(table: CollectionTable) -> set[Path]:
    return {each for each in Path(table.uri).rglob("*") if each.is_file()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_others_are_searched_and_the_damage_is_reported(
    scene: Scene, damage: Callable[[CollectionTable], None]
) -> None:
    table = scene.registry.create(spec(name=BROKEN)).table
    table.write(entries(0, 2), lambda *_: None)
    scene.add(entries(0, 3))
    damage(table)
    stored = files_of(table)
    scene.clock.now += 4000
    assert search(scene.settle(), "image", 1).hits[0].id == "image-1"
    assert set(scene.follower.damaged()) == {BROKEN}
    reason = scene.follower.damaged()[BROKEN]
    assert reason.startswith(f"collections/{BROKEN}/")
    assert str(Path(table.uri).parents[2]).lstrip("/") not in reason
    assert files_of(table) == stored
    with pytest.raises(InvalidVersion, match=f"collections/{BROKEN}/"):
        scene.registry.create(spec(name=BROKEN))


@pytest.mark.parametrize("damage", [before_its_last_write, without_head, with_another_head])
def test_what_was_read_before_the_damage_is_searched(
    scene: Scene, damage: Callable[[CollectionTable], None]
) -> None:
    scene.add(entries(0, 3))
    scene.settle()
    damage(scene.table)
    assert scene.settle().rows() == 3
    assert scene.follower.snapshots()[NAME].is_damaged
    assert set(scene.follower.damaged()) == {NAME}


@pytest.mark.parametrize("column", ["payload", "parent", "source"])
def test_an_item_that_is_not_as_it_was_written_is_refused_by_name(
    scene: Scene, column: str
) -> None:
    scene.add(entries(0, 3))
    lance.dataset(scene.table.uri).update({column: "'another'"}, where="id = 'image-1'")
    searched = scene.settle()
    refused = pytest.raises(InvalidVersion, match=r"item 'image-1' is not as it was written")
    with refused:
        searched.items(0, 3, include=["source"])
    with refused:
        query_E = np.eye(1, 6, dtype=np.float32)[0]
        searched.search(SearchQuery(3, query_E, include=["source"]))
    scene.add(entries(1, 1))
    assert len(scene.settle().items(0, 3, include=["source"])) == 3


def test_whole_seconds_are_read_as_they_were_written(scene: Scene) -> None:
    scene.add([entries(0, 1)[0]._replace(parent="film", start=3, end=4)])
    (found,) = scene.settle().items(0, 1)
    assert (found.start, found.end) == (3.0, 4.0)


def test_a_feature_that_is_not_as_it_was_written_is_not_embedded(scene: Scene) -> None:
    scene.add(entries(0, 3))
    scene.settle()
    (file,) = (
        each
        for each in Path(scene.table.uri, "data").iterdir()
        if feature("image", 1).tobytes() in each.read_bytes()
    )
    file.write_bytes(
        file.read_bytes().replace(feature("image", 1).tobytes(), feature("image", 9).tobytes())
    )
    scene.swap(2)
    assert scene.settle().version.number == 1
    snapshot = scene.follower.snapshots()[NAME]
    assert snapshot.is_damaged
    assert "item 'image-1' is not as it was written" in (snapshot.problem or "")
    scene.add(entries(1, 1))
    scene.clock.now += 1000
    assert scene.settle().version.number == 2
    assert scene.follower.snapshots()[NAME].problem is None


def test_repaired_damage_is_no_longer_reported(scene: Scene) -> None:
    scene.add(entries(0, 3))
    manifest = newest(scene.table, "_versions", ".manifest")
    content = manifest.read_bytes()
    manifest.write_bytes(b"")
    scene.follower.poll()
    assert set(scene.follower.damaged()) == {NAME}
    manifest.write_bytes(content)
    scene.clock.now += 1000
    scene.settle()
    assert scene.follower.damaged() == {}
    assert scene.follower.snapshots()[NAME].problem is None


def test_a_list_has_the_undamaged_ones_and_the_damage_is_reported(searching: Searching) -> None:
    assert searching.ask("PUT", f"/{BROKEN}", {"model": "scenes"}).status_code == 200
    without_head(searching.collections.registry.existing(BROKEN, lambda _: True).table)
    deadline = time.monotonic() + 60
    while not (listed := searching.ask("GET", "").json())["damaged"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [each["id"] for each in listed["data"]] == ["things"]
    assert [each["id"] for each in listed["damaged"]] == [BROKEN]
    one = searching.ask("GET", f"/{BROKEN}")
    assert (one.status_code, one.json()["error"]["code"]) == (500, "collection_damaged")
    assert "/dev/" not in one.text
    searching.access = NamedCallers()
    searching.app = searching.app_of(searching.args)
    assert searching.ask("GET", "", None, {"authorization": "bob"}).json()["damaged"] == []


def test_a_search_of_missing_data_is_answered_with_the_damage(searching: Searching) -> None:
    revision = searching.add("things", [item("image", n) for n in range(3)])
    assert searching.found("things", revision, query=image_query(1))
    table = searching.collections.registry.existing("things", lambda _: True).table
    for each in Path(table.uri, "data").iterdir():
        each.unlink()
    response = searching.ask("POST", "/things/search", {"query": image_query(1)})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "collection_damaged")
    assert "/dev/" not in response.text
