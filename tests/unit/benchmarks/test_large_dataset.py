"""The parts of the benchmark of large data that need neither root nor minutes."""

from pathlib import Path

import numpy as np

from benchmarks.large.data import write_dataset
from workers.train.dataset import read_rows


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
