"""Which rows a batch has: every row once an epoch, from all parts of the dataset, by the seed alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.train.rows import BatchPlan, VirtualShards, block_rows, permuted_batches, shard_windows


@given(rows=st.integers(0, 10**10), count=st.integers(1, 300))
def test_virtual_shards_partition_the_dataset(rows: int, count: int) -> None:
    shards = VirtualShards(rows, count)
    assert shards.start(0) == 0
    assert shards.start(count) == rows
    lengths = [shards.start(shard + 1) - shards.start(shard) for shard in range(count)]
    assert min(lengths) >= 0
    assert max(lengths) - min(lengths) <= 1


@given(rows=st.integers(1, 10**9), count=st.integers(1, 300), batch=st.integers(1, 70_000))
def test_virtual_shards_share_every_batch_within_their_rows(
    rows: int, count: int, batch: int
) -> None:
    shards, updates = VirtualShards(rows, count), rows // batch
    for number in {0, updates // 2, max(updates - 1, 0)}:
        before, after = shards.taken(number * batch), shards.taken((number + 1) * batch)
        given_rows = after - before
        assert given_rows.sum() == batch
        assert given_rows.max() - given_rows.min() <= 1
    given_rows = shards.taken(updates * batch)
    assert all(
        given_rows[shard] <= shards.start(shard + 1) - shards.start(shard) for shard in range(count)
    )


@pytest.mark.parametrize("rows", [0, 1, 7, 100, 1000])
@pytest.mark.parametrize("shard", [0, 3, 9])
def test_windows_have_each_row_of_a_virtual_shard_once(rows: int, shard: int) -> None:
    shards = VirtualShards(rows, count=10)
    seen = []
    for window in shard_windows(shard, shards, block=4, seed=(5, 0)):
        numbers = np.concatenate([np.arange(start, stop) for start, stop in window.blocks])
        assert len(window) == len(numbers)
        seen += numbers[window.order_K].tolist()
    assert sorted(seen) == list(range(shards.start(shard), shards.start(shard + 1)))


def test_windows_depend_on_seed_epoch_and_virtual_shard_only() -> None:
    shards = VirtualShards(10_000, count=10)

    def order(shard: int, seed: tuple[int, int]) -> list[int]:
        windows = shard_windows(shard, shards, 8, seed)
        return [start - shards.start(shard) for window in windows for start, _ in window.blocks]

    assert order(0, (1, 0)) == order(0, (1, 0))
    others = [order(0, (2, 0)), order(0, (1, 1)), order(1, (1, 0))]
    assert all(other != order(0, (1, 0)) for other in others)


def test_virtual_shards_do_not_all_need_new_rows_at_once() -> None:
    """Their first windows differ in length, so what is read is spread over the updates."""
    shards = VirtualShards(256 * 1000)
    lengths = [len(next(shard_windows(shard, shards, 8, (0, 0)))) for shard in range(32)]
    assert len(set(lengths)) == 16


def test_neighbours_are_mixed_with_the_rows_of_many_blocks() -> None:
    """The quality of the shuffle, as it is stated in docs/decisions/0014: of two rows of a batch one
    in some thousands comes from the same block of neighbours."""
    shards, block = VirtualShards(256 * 4000), block_rows(2 * 1024 * 4)
    window = list(shard_windows(7, shards, block, (0, 0)))[3]
    assert len(window.blocks) == 16
    blocks = np.repeat(np.arange(16), block)[window.order_K]
    together = float((blocks[:-1] == blocks[1:]).mean())
    assert together < 0.12  # 1 / 16, and noise


def test_every_row_is_seen_and_the_order_depends_on_the_seed_alone() -> None:
    plan = BatchPlan(batch_size=30, epochs=2, seed=5)
    batches = list(permuted_batches(100, plan))
    assert len(batches) == plan.updates(100) == 6
    assert all(len(batch) == 30 for batch in batches)
    assert len(torch.cat(batches[:3]).unique()) == 90
    again = list(permuted_batches(100, plan))
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))
    assert not torch.equal(batches[0], next(permuted_batches(100, BatchPlan(30, 2, seed=6))))


@pytest.mark.parametrize("start", [0, 1, 3, 5, 6])
def test_the_order_resumes_where_it_was_left(start: int) -> None:
    plan = BatchPlan(batch_size=30, epochs=2, seed=5)
    rest = list(permuted_batches(100, plan, start))
    whole = list(permuted_batches(100, plan))[start:]
    assert all(torch.equal(one, other) for one, other in zip(rest, whole, strict=True))
