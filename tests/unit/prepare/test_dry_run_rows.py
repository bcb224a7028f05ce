"""The memory of a dry run is bounded for any number and width of rows."""

from pathlib import Path

import pytest
import torch

from tests.fakes.feature_shards import numbered_rows, write_pair_shards
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
    # Rows are numbered: that of the first one in a shard is 0, 300, 301.
    assert found.shard_N.tolist() == [
        (row >= 300) + (row >= 301) for row in range(0, ROWS, -(-ROWS // len(found.rows)))
    ]
    assert bool(found.advice) == (len(found.rows) < ROWS)


def rows_of(seed: int) -> torch.Tensor:
    return torch.randn(30, 8, generator=torch.Generator().manual_seed(seed))


def test_everything_odd_in_rows_is_counted() -> None:
    rows = rows_of(1).half()
    rows[:, 2] = 7
    rows[9] = rows[10] = rows[11]
    found = check_rows(rows)
    assert (found.rows, found.width) == (30, 8)
    assert (found.duplicate_rows, found.constant_columns, found.rank_one) == (2, 1, False)
    assert len(list(advice_on_rows(found))) == 2
    strange = found.model_copy(update={"familiarity": 0.1})
    assert any("same encoder" in sentence for sentence in advice_on_rows(strange))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rank_one_rows_are_noticed_at_any_scale(scale: float) -> None:
    rows = torch.outer(rows_of(3)[:20, 0], rows_of(4)[0, :6])
    assert check_rows(rows * scale).rank_one
    rows[7, 0] += 0.1
    assert not check_rows(rows * scale).rank_one
