"""A deleted name is freed after a grace period; numbers are never reused, even beside a stalled writer."""

from datetime import UTC, datetime, timedelta

import pytest

from cmcl.contract.errors import StorageUnavailable
from cmcl.storage import layout
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.collections.scene import EVERYONE, NAME, Scene, add, create, entries
from workers.serve.collections import revision_log, writes
from workers.serve.collections.maintenance import _freed, sweep
from workers.serve.collections.revision_log import Revision

NOW = datetime.now(UTC)
MUCH_LATER = NOW + timedelta(hours=2)


def delete(store: FlakyStore) -> Revision:
    return writes.delete(store, NAME, EVERYONE)


@pytest.fixture
def deleted(store: FlakyStore) -> Revision:
    add(store, entries(0, 3))
    add(store, entries(3, 3))
    return delete(store)


def names(store: FlakyStore) -> list[str]:
    return revision_log.collection_names(store)


def test_a_deleted_collection_is_kept_for_those_who_have_not_seen_it(
    store: FlakyStore, deleted: Revision
) -> None:
    sweep(store, NAME, NOW)
    assert revision_log.newest(store, NAME) == deleted


def test_after_the_grace_nothing_of_it_is_left(store: FlakyStore, deleted: Revision) -> None:
    assert sweep(store, NAME, MUCH_LATER) == deleted.revision + 1 + 2
    assert names(store) == []
    assert list(store.keys(layout.collections())) == []


def test_many_names_leave_one_number(store: FlakyStore) -> None:
    for number in range(20):
        spec = writes.CollectionSpec(f"name-{number}", "m", None, "float32")
        writes.create(store, spec)
        writes.delete(store, spec.name, EVERYONE)
        sweep(store, spec.name, MUCH_LATER)
    assert names(store) == []
    assert len(list(store.keys(layout.collection_numbers()))) == 1


def test_numbers_continue_where_a_name_is_reused(store: FlakyStore, deleted: Revision) -> None:
    sweep(store, NAME, MUCH_LATER)
    again = create(store)
    assert again.revision > deleted.revision
    assert again.born == again.revision
    assert add(store, entries(0, 1)).revision == again.revision + 1


def test_a_look_costs_nothing_for_names_that_are_gone(store: FlakyStore, scene: Scene) -> None:
    for number in range(20):
        spec = writes.CollectionSpec(f"name-{number}", "m", None, "float32")
        writes.create(store, spec)
        writes.delete(store, spec.name, EVERYONE)
    scene.follower.poll()
    for name in names(store):
        sweep(store, name, MUCH_LATER)
    store.calls.clear()
    scene.follower.poll()
    assert store.calls == [layout.collections()]


def test_a_replica_that_has_missed_the_deletion_takes_the_next_for_another(scene: Scene) -> None:
    add(scene.store, entries(0, 5))
    assert scene.settle().rows == 5
    delete(scene.store)
    sweep(scene.store, NAME, MUCH_LATER)
    add(scene.store, entries(100, 1))
    assert scene.settle().rows == 1


def test_a_replica_drops_a_collection_whose_deletion_it_missed(scene: Scene) -> None:
    add(scene.store, entries(0, 5))
    scene.settle()
    delete(scene.store)
    sweep(scene.store, NAME, MUCH_LATER)
    scene.follower.poll()
    assert scene.follower.snapshot(NAME) is None
    assert scene.follower.rows() == 0


def test_rows_for_the_previous_collection_do_not_reach_the_next(store: FlakyStore) -> None:
    target = add(store, entries(0, 1))
    delete(store)
    sweep(store, NAME, MUCH_LATER)
    create(store)
    with pytest.raises(writes.NoCollection):
        writes.write(store, target, entries(1, 1), EVERYONE)


def test_what_a_writer_made_that_slept_does_not_count_and_is_swept(
    store: FlakyStore, deleted: Revision
) -> None:
    sweep(store, NAME, MUCH_LATER)
    slept = deleted.model_copy(update={"deleted": False, "parent": "long ago"})
    key = layout.collection_revision(NAME, slept.revision)
    store.create(key, slept.model_dump_json().encode())
    assert not revision_log._counts(store, slept)
    assert revision_log.newest(store, NAME) is None
    sweep(store, NAME, MUCH_LATER)
    assert names(store) == []


def die_while_sweeping(store: FlakyStore) -> None:
    """After the mark, before anything is removed."""
    store.broken_deletes = True
    with pytest.raises(StorageUnavailable):
        sweep(store, NAME, MUCH_LATER)
    store.broken_deletes = False


def test_reusing_a_name_completes_an_interrupted_sweep(
    store: FlakyStore, deleted: Revision
) -> None:
    die_while_sweeping(store)
    mark = revision_log.newest(store, NAME)
    assert mark is not None
    assert mark.frees_name
    again = create(store)
    assert revision_log.revision_numbers(store, NAME) == [again.revision]
    assert again.revision > mark.revision > deleted.revision


def test_the_next_sweep_ends_what_a_dead_sweeper_began(
    store: FlakyStore, deleted: Revision
) -> None:
    die_while_sweeping(store)
    sweep(store, NAME, MUCH_LATER)
    assert names(store) == []


def test_a_name_that_is_taken_while_it_is_swept_is_left(
    store: FlakyStore, deleted: Revision
) -> None:
    """The first writer of the next revision wins, a user or the sweep."""
    again = create(store)
    assert again.revision == deleted.revision + 1
    assert _freed(store, deleted, MUCH_LATER) == 0
    assert revision_log.newest(store, NAME) == again
