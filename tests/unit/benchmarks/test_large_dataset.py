"""The parts of the benchmark of large data that need neither root nor minutes."""

from pathlib import Path

import numpy as np

from benchmarks.large.data import write_dataset
from benchmarks.large_dataset import markdown
from workers.train.dataset import read_rows

DOCUMENT = {
    "machine": {"cores": 2},
    "configuration": {
        "rows": 4_000_000,
        "width": 1024,
        "bytes_of_features": 2**34,
        "ranks": 2,
        "limit_mib_each": 3072,
    },
    "result": {"seconds": 9.5, "most_own_mib": [1, 2], "seconds_of_phases": {"reading": 1.5}},
}


def test_sides_of_a_row_belong_together_and_rows_differ(tmp_path: Path) -> None:
    shards = write_dataset(tmp_path, rows=500, width=128, shards=3)
    assert [shard.rows for shard in shards] == [166, 167, 167]
    parts = list(read_rows(shards, 0, 500))
    first, second = (
        np.concatenate([np.asarray(side, np.float32) for side in sides])
        for sides in ([part.first_BF for part in parts], [part.second_BG for part in parts])
    )
    assert len(np.unique(first[:, 0])) > 400
    # The same hidden numbers: one side predicts the other, and not in another order of rows.
    fit = first @ np.linalg.lstsq(first, second, rcond=None)[0]
    shuffled = first[::-1] @ np.linalg.lstsq(first[::-1], second, rcond=None)[0]
    assert np.square(second - fit).mean() < 0.7 * np.square(second - shuffled).mean()


def test_page_shows_the_run() -> None:
    page = markdown(DOCUMENT)
    assert "4,000,000 pairs of width 1024, 16.0 GiB of float16 features" in page
    assert "| seconds | 9.5 |" in page
