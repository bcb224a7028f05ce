"""Items that were encoded before are found by their digest, in any of the objects that have them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmcl.contract.encoder import EncoderSpec
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from workers.encoders.port import load_encoder
from workers.prepare.encoding import EncodedItem, EncodedItems

SPEC = EncoderSpec(name="words", kind="synthetic", takes="text", width=40)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def items_of(store: LocalStore, owner: str = "ann", **changes: Any) -> EncodedItems:
    spec = EncoderSpec.model_validate({**SPEC.model_dump(), **changes})
    return EncodedItems(store, owner, spec, load_encoder(spec).identity())


def add(items: EncodedItems, first: int, stop: int) -> None:
    items.add(
        {
            key(number): EncodedItem(np.full(40, number, np.float32), is_flat=number % 3 == 0)
            for number in range(first, stop)
        }
    )


def found(items: EncodedItems, *numbers: int) -> list[int]:
    """The numbers that are found, each with its own feature."""
    read = items.find({key(number) for number in numbers})
    for number in numbers:
        if key(number) in read:
            item = read[key(number)]
            assert item.feature_F.tolist() == [number] * 40
            assert item.is_flat == (number % 3 == 0)
    return [number for number in numbers if key(number) in read]


def test_items_of_several_objects_are_found(store: LocalStore) -> None:
    assert found(items_of(store), 1, 2) == []
    add(items_of(store), 0, 1000)
    add(items_of(store), 990, 1500)
    assert found(items_of(store)) == []
    assert found(items_of(store), 3) == [3]
    assert found(items_of(store), *range(0, 2000, 7)) == list(range(0, 1500, 7))
    assert found(items_of(store), *range(1500)) == list(range(1500))


def test_few_of_many_features_are_read_alone(store: LocalStore, tmp_path: Path) -> None:
    add(items_of(store), 0, 5000)
    (object_,) = store.keys(layout.encoded())
    assert found(items_of(store), 0) == [0]
    read: list[int] = []

    class Counting(LocalStore):
        def read_range(self, key: str, start: int, stop: int) -> bytes:
            read.append(stop - start)
            return super().read_range(key, start, stop)

    assert found(items_of(Counting(tmp_path)), 10, 20, 30) == [10, 20, 30]
    assert sum(read) < store.size(object_) / 4
