"""Collections on both kinds of store: writers at the same moment lose nothing, and what is deleted leaves the store."""

import threading
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from cmcl.contract.errors import StorageUnavailable
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections.registry import Registry
from workers.serve.collections.table import CollectionSpec, NoCollection, Row

WRITERS, CHANGES_EACH = 4, 3
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = CollectionSpec(
    name="things",
    model="m",
    owner=None,
    feature_type="float32",
    vector_type="float32",
    dimensions=None,
    text_fields=(),
)


def row(name: str) -> Row:
    return Row(name, "image", np.arange(1, 6, dtype=np.float32), None)


def test_writers_at_the_same_time_lose_no_change(store: ObjectStore) -> None:
    table = Registry(store).create(SPEC).table
    revisions: list[int] = []

    def write(writer: int) -> None:
        for change in range(CHANGES_EACH):
            rows = [row(f"{writer}-{change}"), row("of all")]
            revisions.append(table.write(rows, lambda *_: None))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(revisions) == list(range(2, 2 + WRITERS * CHANGES_EACH))
    state = Registry(store).existing("things", lambda _: True)
    ids = state.dataset.to_table(columns=["id"], filter="id != ''")["id"].to_pylist()
    made = [f"{writer}-{change}" for writer in range(WRITERS) for change in range(CHANGES_EACH)]
    assert sorted(ids) == [*made, "of all"]


def test_two_that_create_a_name_get_one_collection(store: ObjectStore) -> None:
    tables = []
    threads = [
        threading.Thread(target=lambda: tables.append(Registry(store).create(SPEC).table))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {table.number for table in tables} == {1}
    assert len(tables) == 3


def test_a_deleted_collection_leaves_the_store_and_the_next_one_stays(store: ObjectStore) -> None:
    registry = Registry(store)
    table = registry.create(SPEC).table
    table.write([row("a")], lambda *_: None)
    registry.delete("things", lambda _: True)
    again = registry.create(SPEC).table
    registry.sweep("things")
    assert table.read().head.ended_at is not None
    again.update(lambda head: head.model_copy(update={"ended_at": LONG_AGO}))
    third = registry.create(SPEC).table
    registry.sweep("things")
    with pytest.raises(NoCollection):
        again.read()
    assert list(store.keys(layout.collection_table("things", 2))) == []
    assert third.read().head.revision == 4


def test_an_outage_is_no_damage(store: ObjectStore) -> None:
    table = Registry(store).create(SPEC).table
    if not table.options:
        pytest.skip("a folder has no outages of its own")
    nobody = {"aws_endpoint": "http://127.0.0.1:9", "client_max_retries": "0"}
    with pytest.raises(StorageUnavailable):
        replace(table, options={**table.options, **nobody}).read()
