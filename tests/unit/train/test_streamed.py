"""Rows from shards through a local disk: the same rows, in an order that no rank count changes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import InvalidDataset, StorageUnavailable
from tests.fakes.feature_shards import numbered_rows, write_pair_shard, write_pair_shards
from workers.files.shards import Scratch
from workers.model.heads import PairedRows, content_keys
from workers.train.dataset import RowsOnDisk
from workers.train.distributed import World
from workers.train.rows import BatchPlan

ROWS, WIDTHS = 2000, (5, 3)
UNEVEN = (3, 1200, 1, 700, 96)


def same(rows: PairedRows) -> PairedRows:
    return rows


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    folder = tmp_path_factory.mktemp("shards")
    return write_pair_shards(folder, *numbered_rows(ROWS), UNEVEN)


def numbers(rows: PairedRows) -> list[int]:
    assert torch.equal(rows.first_NI[:, 0], rows.second_NJ[:, 0])
    return rows.first_NI[:, 0].long().tolist()


def batches_of(shards: list[Shard], plan: BatchPlan, size: int, start: int = 0) -> list[list[int]]:
    """Each global batch, put together from all ranks."""
    parts = [
        list(RowsOnDisk(shards, WIDTHS).batches(plan, World(rank, size), same, start))
        for rank in range(size)
    ]
    together = []
    for batch in zip(*parts, strict=True):
        assert [len(part.rows) for part in batch] == list(batch[0].lengths)
        together.append([number for part in batch for number in numbers(part.rows)])
    return together


PLAN = BatchPlan(batch_size=300, epochs=2, seed=11)


@pytest.mark.parametrize("size", [2, 3, 4, 300])
def test_global_batches_do_not_depend_on_the_number_of_ranks(
    shards: list[Shard], size: int
) -> None:
    """Also with more ranks than shards, than rows a batch, and than virtual shards."""
    assert batches_of(shards, PLAN, size) == batches_of(shards, PLAN, 1)


def test_a_row_comes_once_an_epoch(shards: list[Shard]) -> None:
    batches = batches_of(shards, PLAN, 1)
    assert len(batches) == PLAN.updates(ROWS) == 12
    for epoch in (batches[:6], batches[6:]):
        counts = Counter(number for batch in epoch for number in batch)
        assert len(counts) == 1800
        assert set(counts.values()) == {1}
    assert set(batches[0]) != set(batches[6])


def test_a_batch_is_a_sample_of_the_whole_dataset(shards: list[Shard]) -> None:
    """However rows are sorted: each tenth of the dataset gives a tenth of each batch."""
    for batch in batches_of(shards, PLAN, 1):
        parts = np.bincount((np.array(batch) - 1) * 10 // ROWS, minlength=10)
        assert parts.min() >= 25
        assert parts.max() <= 35


@pytest.mark.parametrize("start", [1, 5, 6, 7, 11, 12])
def test_a_stream_resumes_where_it_was_left(shards: list[Shard], start: int) -> None:
    assert batches_of(shards, PLAN, 2, start) == batches_of(shards, PLAN, 2)[start:]


@pytest.mark.parametrize("size", [1, 3, 300])
def test_chunks_have_every_row_once_over_all_ranks(shards: list[Shard], size: int) -> None:
    """In the first pass, which reads shards, and in the second, which reads the disk."""
    firsts, seconds = [], []
    for rank in range(size):
        rows, here = RowsOnDisk(shards, WIDTHS), World(rank, size)
        firsts += [number for chunk in rows.chunks(here) for number in numbers(chunk)]
        seconds += [number for chunk in rows.chunks(here) for number in numbers(chunk)]
    assert firsts == seconds == list(range(1, ROWS + 1))


def test_keys_are_those_of_the_rows(shards: list[Shard]) -> None:
    batch = next(iter(RowsOnDisk(shards, WIDTHS).batches(PLAN, World(0, 1), same)))
    expected = content_keys(batch.rows.first_NI.float().numpy())
    assert np.array_equal(batch.rows.first_keys_N.numpy(), expected)


def test_float16_and_float32_shards_go_together(tmp_path: Path) -> None:
    first, second = numbered_rows(900)
    shards = [
        write_pair_shard(tmp_path / "a.parquet", (first[:500], second[:500])),
        write_pair_shard(
            tmp_path / "b.parquet",
            (first[500:].astype(np.float32) + 0.1, second[500:].astype(np.float32) + 0.1),
        ),
    ]
    chunks = list(RowsOnDisk(shards, WIDTHS).chunks(World(0, 1)))
    values = torch.cat([chunk.first_NI[:, 0].double() for chunk in chunks])
    assert float(values[499]) == 500.0
    assert float(values[500]) == pytest.approx(501.1, abs=1e-4)


def test_the_transform_is_applied_to_every_batch(shards: list[Shard]) -> None:
    def doubled(rows: PairedRows) -> PairedRows:
        return PairedRows(rows.first_NI * 2, rows.second_NJ, rows.first_keys_N, rows.second_keys_N)

    for batch in RowsOnDisk(shards, WIDTHS).batches(PLAN, World(0, 1), doubled):
        assert torch.equal(batch.rows.first_NI[:, 0], 2 * batch.rows.second_NJ[:, 0])


@pytest.mark.parametrize(
    ("known", "name"),
    [
        ({"blake3": "0" * 64}, "BLAKE3"),
        # Like a manifest that was written before shards had a BLAKE3.
        ({"blake3": None, "sha256": "0" * 64}, "SHA-256"),
    ],
)
def test_a_shard_of_other_bytes_is_rejected_with_a_message(
    shards: list[Shard], known: dict[str, str | None], name: str
) -> None:
    wrong = shards[1].model_copy(update=known)
    rows = RowsOnDisk([shards[0], wrong], WIDTHS)
    with pytest.raises(InvalidDataset, match=rf"its {name} is [0-9a-f]+, expected 0000"):
        list(rows.chunks(World(0, 1)))


def test_shard_without_a_blake3_is_read_as_before(shards: list[Shard]) -> None:
    older = [shard.model_copy(update={"blake3": None}) for shard in shards]
    chunks = zip(
        *(RowsOnDisk(each, WIDTHS).chunks(World(0, 1)) for each in (shards, older)), strict=True
    )
    assert all(torch.equal(new.first_NI, old.first_NI) for new, old in chunks)


def test_a_missing_shard_is_rejected_with_a_message(shards: list[Shard]) -> None:
    gone = shards[1].model_copy(update={"uri": shards[1].uri + ".gone"})
    rows = RowsOnDisk([shards[0], gone], WIDTHS)
    with pytest.raises(InvalidDataset, match="there is no such object"):
        list(rows.batches(PLAN, World(0, 1), same))


def test_a_disk_without_room_is_detected_with_the_first_rows(shards: list[Shard]) -> None:
    rows = RowsOnDisk(shards, WIDTHS, Scratch(limit=ROWS * sum(WIDTHS) * 2))  # Keys need more.
    with pytest.raises(StorageUnavailable, match="CMCL_SCRATCH_BYTES"):
        next(iter(rows.chunks(World(0, 1))))


def test_reading_can_be_begun_again_after_it_failed(shards: list[Shard]) -> None:
    rows = RowsOnDisk(shards, WIDTHS)
    chunks = rows.chunks(World(0, 1))
    next(iter(chunks))
    del chunks
    again = [number for chunk in rows.chunks(World(0, 1)) for number in numbers(chunk)]
    assert again == list(range(1, ROWS + 1))
