"""What a pre-flight holds in memory is bounded, however many rows there are and however wide."""

from pathlib import Path

import pytest

from tests.fakes.pair_shards import numbered_rows, write_pair_shards
from workers.inspect.sample import Sample, sampled

ROWS = 1000


def sample_of(folder: Path, most_values: int) -> Sample | None:
    write_pair_shards(folder, *numbered_rows(ROWS), [300, 1, 699])
    return sampled([folder / f"{number}.parquet" for number in range(3)], most_values)


@pytest.mark.parametrize("most_values", [8 * ROWS, 8 * ROWS - 1, 800, 8])
def test_a_sample_has_no_more_values_than_permitted(tmp_path: Path, most_values: int) -> None:
    found = sample_of(tmp_path, most_values)
    assert found is not None
    assert found.of == ROWS
    assert 0 < len(found.rows) * 8 <= most_values
    assert bool(found.advice) == (len(found.rows) < ROWS)


def test_a_sample_is_evenly_chosen(tmp_path: Path) -> None:
    found = sample_of(tmp_path, 8 * ROWS // 10)
    assert found is not None
    assert found.rows.first_NI[:, 0].tolist() == list(range(1, ROWS + 1, 10))


def test_rows_wider_than_permitted_are_not_read(tmp_path: Path) -> None:
    assert sample_of(tmp_path, 7) is None
