"""What stays in the store and what leaves it: versions that are gone, deleted collections, removed items, small files."""

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import pytest

from cmcl.contract.errors import ObjectNotFound, StorageUnavailable
from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.ports.test_store_unavailable import small_disk
from tests.unit.serve.collections.scene import (
    EVERYONE,
    NAME,
    Scene,
    create,
    entries,
    removals,
    search,
)
from tests.unit.serve.served_versions import version
from workers.serve.collections import columns, registry
from workers.serve.collections.columns import ColumnBuilder, column_of
from workers.serve.collections.table import CollectionTable, NoCollection
from workers.serve.versions.loading import ServedVersion

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


class Forgetful(Scene):
    """A replica that has read no version yet, in whose store version 1 has been deleted."""

    def version(self, model: str, number: int) -> ServedVersion:
        if number == 1:
            raise ObjectNotFound(f"{model}@1")
        return super().version(model, number)


@pytest.mark.parametrize("is_complete", [True, False], ids=["complete", "being made"])
def test_writes_go_on_when_the_version_of_a_column_is_gone(scene: Scene, is_complete: bool) -> None:
    scene.add(entries(0, 3))
    scene.follower.poll()
    if is_complete:
        scene.settle()
    else:
        assert scene.follower.work()
    named = scene.table.read().head
    assert column_of(version(1)) in {*named.complete, named.making}
    other = Forgetful(scene.store, name="two")
    other.swap(2)
    other.add(entries(3, 3))
    head = other.table.read().head
    assert (head.complete, head.making) == ((), None)
    head = other.table.update(lambda head: head.model_copy(update={"builder": None}))
    assert other.settle().rows() == 6
    assert other.table.read().columns == (column_of(version(2)),)


def test_vectors_of_a_model_that_was_deleted_are_not_taken_for_those_of_its_namesake(
    scene: Scene,
) -> None:
    scene.add(entries(0, 20))
    scene.settle()
    scene.swap(2)
    scene.settle()
    scene.live.forget("m")
    scene.follower.poll()
    again = Scene(scene.store, name=scene.name)
    later = datetime(2026, 12, 1, tzinfo=UTC)
    served = replace(version(1, heads=version(7).heads), created_at=later)
    again.swap(1, served)
    again.add(entries(20, 1))
    searched = again.settle()
    assert searched.version is served
    assert searched.rows() == 21
    hit = search(searched, "image", 3).hits[0]
    assert (hit.id, round(hit.score, 4)) == ("image-3", 1.0)
    assert column_of(served) in again.table.read().columns
    assert column_of(version(1)) not in again.table.read().columns


def ended(scene: Scene) -> CollectionTable:
    """A collection with three items that was deleted long ago."""
    table = create(scene.store).table
    scene.add(entries(0, 3))
    table.update(lambda head: head.model_copy(update={"ended_at": LONG_AGO}))
    return table


def test_a_deleted_collection_leaves_the_store_after_an_hour(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = create(scene.store).table
    scene.add(entries(0, 3))
    scene.registry.delete(NAME, EVERYONE)
    scene.registry.sweep(NAME)
    again = create(scene.store)
    assert again.head.revision == table.read().head.revision + 1
    assert again.table.number == table.number + 1
    scene.add(entries(5, 1))
    monkeypatch.setattr(registry, "_KEPT", timedelta(0))
    scene.clock.now += 3601
    assert scene.settle().rows() == 1
    assert not [each for each in Path(table.uri).rglob("*") if each.is_file()]


def test_a_name_that_was_swept_is_used_again_by_every_replica(scene: Scene) -> None:
    ended(scene)
    other = Scene(scene.store, name="two")
    other.swap(1)
    other.follower.poll()
    scene.registry.sweep(NAME)
    create(scene.store)
    scene.add(entries(50, 4))
    for each in (scene, other):
        assert each.settle().rows() == 4
        assert search(each.settle(), "image", 51).hits[0].id == "image-51"


@pytest.mark.parametrize("done", [0, 1, 2, 4, 8])
def test_a_sweep_that_died_leaves_a_whole_table_or_none_and_the_next_ones_end_it(
    scene: Scene, done: int
) -> None:
    table = ended(scene)
    scene.store.deletes_left = done
    with pytest.raises(StorageUnavailable):
        scene.registry.sweep(NAME)
    scene.store.deletes_left = None
    try:
        assert table.read().rows == 3
    except NoCollection:
        assert scene.registry.newest(NAME) is None
    for _ in range(2):
        scene.registry.sweep(NAME)
    assert not [each for each in Path(table.uri).rglob("*") if each.is_file()]
    assert create(scene.store).rows == 0


def texts_in(folder: str, text: bytes) -> int:
    return sum(text in each.read_bytes() for each in Path(folder).rglob("*") if each.is_file())


def test_items_that_were_removed_leave_the_files_and_small_files_are_merged(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        scene.add(entries(number, 1, payload=f'{{"secret": "number-{number}."}}'))
    scene.add(removals(["image-3", "image-4"]))
    before = scene.table.read()
    assert len(before.dataset.get_fragments()) > 10
    assert before.head.leftovers_since is not None
    assert texts_in(scene.table.uri, b"number-3.") > 0
    monkeypatch.setattr(columns, "_KEPT_LEFTOVERS", timedelta(0))
    monkeypatch.setattr(registry, "_KEPT", timedelta(0))
    scene.settle()
    searched = scene.settle()
    scene.registry.sweep(NAME)
    state = scene.table.read()
    assert len(state.dataset.get_fragments()) < 4
    assert state.head.leftovers_since is None
    assert searched.rows() == 10
    assert texts_in(scene.table.uri, b"number-3.") == 0
    assert texts_in(scene.table.uri, b"number-5.") > 0
    assert state.dataset.count_rows() == 11


def test_a_write_while_files_are_merged_does_not_refuse_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        scene.add(entries(number, 1))
    merge = columns._compact

    def beside_a_write(dataset: lance.LanceDataset, deleted_share: float) -> None:
        scene.add(entries(12, 1))
        merge(dataset, deleted_share)

    monkeypatch.setattr(columns, "_compact", beside_a_write)
    monkeypatch.setattr(columns, "_ATTEMPTS", 1)
    for _ in ColumnBuilder(scene.table, scene.name).tidy():
        pass
    assert len(scene.table.read().dataset.get_fragments()) < 5
    assert scene.settle().rows() == 13


def test_tidying_beside_a_writer_loses_nothing_and_indexes_all(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "INDEX_FROM_ROWS", 100)
    scene.add(entries(0, 150, payload='{"colour": "red"}'))
    scene.settle()
    stop = threading.Event()
    written = [150]

    def write() -> None:
        while not stop.is_set():
            scene.add(entries(written[-1], 1), mark=str(written[-1]))
            written.append(written[-1] + 1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        builder = ColumnBuilder(scene.table, scene.name)
        for _ in range(2):
            for _ in builder.tidy():
                time.sleep(0.02)
    finally:
        stop.set()
        writer.join()
    searched = scene.settle()
    assert len(written) > 1
    assert searched.rows() == written[-1]
    assert {"id", "terms", "modality", column_of(searched.version)} <= searched.state.indexes.keys()
    for number in (3, written[-1] - 1):
        assert search(searched, "image", number).hits[0].id == f"image-{number}"


@pytest.mark.parametrize(("written", "is_indexed"), [(40, False), (60, True)])
def test_many_rows_that_no_index_has_are_indexed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, written: int, is_indexed: bool
) -> None:
    monkeypatch.setattr(columns, "INDEX_FROM_ROWS", 100)
    monkeypatch.setattr(columns, "_MOST_COMPARED", 50)
    scene.add(entries(0, 150))
    scene.settle()
    scene.settle()  # Also its indexes.
    scene.add(entries(150, written))
    state = scene.settle().state
    last = state.dataset.to_table(columns=[], filter="id = 'image-150'", with_row_address=True)
    fragment = last["_rowaddr"][0].as_py() >> 32
    for column in ("id", column_of(scene.searched().version)):
        assert (fragment in state.indexes[column]) == is_indexed


def test_being_woken_without_end_does_not_keep_vectors_from_being_made(scene: Scene) -> None:
    scene.add(entries(0, 5))
    scene.settle()
    stop = threading.Event()

    def wake() -> None:
        while not stop.is_set():
            scene.follower.wake()
            time.sleep(0)

    waker = threading.Thread(target=wake)
    scene.follower.start()
    waker.start()
    try:
        scene.swap(2)
        deadline = time.monotonic() + 60
        while scene.searched().version.number != 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        stop.set()
        waker.join()
        scene.threads.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_refuses_writes_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m"):
        table = create(FlakyStore(LocalStore(tmp_path / "store"))).table
        written = table.write(entries(0, 10), lambda *_: None)
        filler = tmp_path / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match="No space left on device"):
                table.write(entries(10, 500), lambda *_: None)
        assert (table.read().rows, table.read().head.revision) == (10, written)
        filler.unlink()
        table.write(entries(10, 50), lambda *_: None)
        assert table.read().rows == 60
