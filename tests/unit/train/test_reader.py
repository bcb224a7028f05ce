"""Rows as they come from shards: in their order, each shard checked before it gives any."""

import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import InvalidDataset
from tests.fakes.feature_shards import numbered_rows, write_pair_shards
from workers.train.dataset import Records, read_rows

ROWS = 6000
UNEVEN = (3, 2900, 1, 2500, 596)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    folder = tmp_path_factory.mktemp("shards")
    return write_pair_shards(folder, *numbered_rows(ROWS), UNEVEN, group_rows=700)


def numbers(rows: Records) -> list[int]:
    assert np.array_equal(rows.first_BF[:, 0], rows.second_BG[:, 0])
    return [int(number) for number in rows.first_BF[:, 0]]


def held() -> tuple[int, int]:
    """Threads and open files of this process."""
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("lengths", [(2000,), (1, 1999), (500, 500, 500, 500), (3, 1200, 1, 796)])
@pytest.mark.parametrize("group_rows", [100, 5000])
def test_rows_and_their_order_do_not_depend_on_shards_and_row_groups(
    tmp_path: Path, lengths: tuple[int, ...], group_rows: int
) -> None:
    shards = write_pair_shards(tmp_path, *numbered_rows(2000), lengths, group_rows)
    found = [number for rows in read_rows(shards, 0, 2000) for number in numbers(rows)]
    assert found == list(range(1, 2001))


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (2, 4), (3, 2903), (2902, 2905), (1500, 5500), (5999, 6000), (7, 7)]
)
def test_only_the_requested_rows_are_read(shards: list[Shard], start: int, stop: int) -> None:
    found = [row for rows in read_rows(shards, start, stop) for row in rows.first_BF[:, 0]]
    expected, _ = numbered_rows(ROWS)
    assert np.array_equal(found, expected[start:stop, 0])


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_leaving_early_ends_threads_and_closes_files(shards: list[Shard], taken: int) -> None:
    before, reading = held(), read_rows(shards, 0, ROWS)
    for _ in range(taken):
        next(reading)
    reading.close()
    assert held() == before


def test_nothing_is_left_once_all_rows_came(shards: list[Shard]) -> None:
    before = held()
    assert sum(len(rows) for rows in read_rows(shards, 0, ROWS)) == ROWS
    assert held() == before


def test_an_error_of_a_shard_comes_after_the_rows_before_it(shards: list[Shard]) -> None:
    wrong = shards[3].model_copy(update={"blake3": "0" * 64})
    before, reading = held(), read_rows([*shards[:3], wrong, shards[4]], 0, ROWS)
    found = 0
    while found < sum(UNEVEN[:3]):
        found += len(next(reading))
    with pytest.raises(InvalidDataset, match=r"3\.parquet: its BLAKE3 is"):
        next(reading)
    assert held() == before


@pytest.mark.skipif("jemalloc" not in pa.supported_memory_backends(), reason="Arrow lacks it")
def test_arrow_takes_its_memory_from_jemalloc_while_shards_are_read(shards: list[Shard]) -> None:
    pa.set_memory_pool(pa.system_memory_pool())
    with closing(read_rows(shards, 0, ROWS)) as reading:
        next(reading)
        assert pa.default_memory_pool().backend_name == "jemalloc"
        assert pa.jemalloc_memory_pool().bytes_allocated() > 0


def own_memory() -> int:
    """Bytes that this process has for itself."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.parametrize("group_rows", [4096, 160_000])
def test_memory_of_reading_does_not_grow_with_shards(tmp_path: Path, group_rows: int) -> None:
    """Two files are read at a time, with any row groups."""
    rows, width = 320_000, 64
    features = np.random.default_rng(0).standard_normal((rows, width), np.float32)
    halves = (rows // 2, rows // 2)
    shards = write_pair_shards(tmp_path, features, features, halves, group_rows)
    before, most = own_memory(), 0
    for _ in read_rows(shards, 0, rows):
        most = max(most, own_memory() - before)
    assert most < features.nbytes  # Half of what the files have.
