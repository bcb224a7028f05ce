"""The memory of a dry run is bounded for any number and width of rows."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.fakes.feature_shards import numbered_rows, write_pair_shards
from workers.files.shards import write_shard
from workers.prepare.dry_run import Sample, advice_on_rows, check_rows, sampled

ROWS = 1000


def sample_of(folder: Path, most_values: int) -> Sample:
    write_pair_shards(folder, *numbered_rows(ROWS), [300, 1, 699])
    return sampled([folder / f"{number}.parquet" for number in range(3)], most_values)


@pytest.mark.parametrize("most_values", [8 * ROWS, 8 * ROWS - 1, 800, 8])
def test_a_sample_has_no_more_values_than_permitted(tmp_path: Path, most_values: int) -> None:
    found = sample_of(tmp_path, most_values)
    assert found.of == ROWS
    assert 0 < len(found.rows) * 8 <= most_values
    assert bool(found.advice) == (len(found.rows) < ROWS)


def test_a_sample_is_evenly_chosen(tmp_path: Path) -> None:
    found = sample_of(tmp_path, 8 * ROWS // 10)
    assert found.rows.first_NI[:, 0].tolist() == list(range(1, ROWS + 1, 10))


def test_our_own_shards_and_users_go_together(tmp_path: Path) -> None:
    write_pair_shards(tmp_path, *numbered_rows(ROWS), [300, 700])
    paths = [tmp_path / f"{number}.parquet" for number in range(2)]
    ours = tmp_path / "ours.parquet"
    write_shard(ours, pq.read_table(paths[0]).to_batches())
    assert pq.read_schema(ours) != pq.read_schema(paths[0])
    mixed, plain = sampled([ours, paths[1]]), sampled(paths)
    assert torch.equal(mixed.rows.first_NI, plain.rows.first_NI)
    assert torch.equal(mixed.rows.second_NJ, plain.rows.second_NJ)


def rows_of(seed: int) -> torch.Tensor:
    return torch.randn(30, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_sound_rows_give_no_advice(dtype: torch.dtype) -> None:
    assert list(advice_on_rows(check_rows(rows_of(0).to(dtype)))) == []
    single = check_rows(rows_of(0)[:1])
    assert (single.duplicate_rows, single.constant_columns, single.rank_one) == (0, 0, False)


def test_everything_odd_in_rows_is_counted() -> None:
    rows = rows_of(1).half()
    rows[:, 2] = 7
    rows[9] = rows[10] = rows[11]
    found = check_rows(rows)
    assert (found.rows, found.width) == (30, 8)
    assert (found.duplicate_rows, found.constant_columns, found.rank_one) == (2, 1, False)
    assert len(list(advice_on_rows(found))) == 2


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rank_one_rows_are_noticed_at_any_scale(scale: float) -> None:
    rows = torch.outer(rows_of(3)[:20, 0], rows_of(4)[0, :6])
    assert check_rows(rows * scale).rank_one
    rows[7, 0] += 0.1
    assert not check_rows(rows * scale).rank_one
