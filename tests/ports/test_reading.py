"""Reading a shard reserves local disk for two copies, and releases it."""

from pathlib import Path

import pytest

from cmcl.contract.dataset import Shard
from cmcl.storage.object_store import ObjectStore
from tests.fakes.feature_shards import numbered_rows, write_pair_shards
from workers.files.shards import Scratch
from workers.train.dataset import read_rows


@pytest.fixture
def shards(store: ObjectStore, tmp_path: Path) -> list[Shard]:
    found = write_pair_shards(tmp_path, *numbered_rows(2000), (500, 500, 500, 500))
    for number, shard in enumerate(found):
        store.upload(tmp_path / f"{number}.parquet", f"{number}.parquet")
        found[number] = shard.model_copy(update={"uri": f"{store.uri}/{number}.parquet"})
    return found


@pytest.fixture
def room(shards: list[Shard]) -> int:
    """Local disk for two copies."""
    return 2 * max(shard.bytes for shard in shards)


def test_room_for_two_copies_is_enough(shards: list[Shard], room: int) -> None:
    found = [
        number
        for rows in read_rows(shards, 0, 2000, Scratch(room))
        for number in rows.first_BF[:, 0].astype(int).tolist()
    ]
    assert found == list(range(1, 2001))


@pytest.mark.parametrize("taken", [1, 2, 3])
def test_copies_are_gone_when_reading_is_left(shards: list[Shard], room: int, taken: int) -> None:
    scratch = Scratch(room)
    reading = read_rows(shards, 0, 2000, scratch)
    for _ in range(taken):
        next(reading)
    reading.close()
    scratch.take(room)
