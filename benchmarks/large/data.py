"""Generated pairs: both sides are noisy projections of the same latent vector.

Shapes: B rows of a chunk, H latent numbers, F width of a feature.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.dataset import Shard
from workers.files.shards import describe_shard

_HIDDEN = 64
_CHUNK = 16384
_NOISE = 0.5


def write_dataset(folder: Path, rows: int, width: int, shards: int) -> list[Shard]:
    """Write shards of float16 features with one row group per chunk. Existing files are
    overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    mixing = [random.standard_normal((_HIDDEN, width), np.float32) for _ in range(2)]
    # Separate noise for each row would take longer than everything else.
    noise = random.standard_normal((4 * _CHUNK, width), np.float32) * _NOISE * _HIDDEN**0.5
    lengths = [rows * (number + 1) // shards - rows * number // shards for number in range(shards)]
    written = []
    for number, length in enumerate(lengths):
        path = folder / f"{number:04d}.parquet"
        _write(path, _chunks(random, mixing, noise, length), number)
        written.append(describe_shard(path, path.resolve().as_uri()))
        print(f"wrote {number + 1} of {shards} shards", flush=True)
    return written


def _chunks(
    random: np.random.Generator, mixing: Sequence[np.ndarray], noise: np.ndarray, rows: int
) -> Iterator[list[np.ndarray]]:
    for start in range(0, rows, _CHUNK):
        size = min(_CHUNK, rows - start)
        hidden_BH = random.standard_normal((size, _HIDDEN), np.float32)
        offsets = random.integers(0, len(noise) - size, size=2)
        yield [
            (hidden_BH @ mixing_HF + noise[offset : offset + size]).astype(np.float16)
            for mixing_HF, offset in zip(mixing, offsets, strict=True)
        ]


def _write(path: Path, chunks: Iterator[list[np.ndarray]], number: int) -> None:
    writer, row = None, 0
    for sides in chunks:
        size = len(sides[0])
        columns = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(side.reshape(-1)), side.shape[1])
            for name, side in zip(("feature_a", "feature_b"), sides, strict=True)
        }
        ids = pa.array([f"{number}-{row + index}" for index in range(size)])
        table = pa.table({"id": ids, **columns})
        # Features do not repeat and do not compress: a dictionary would only cost time.
        writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=False)
        writer.write_table(table, row_group_size=_CHUNK)
        row += size
    assert writer is not None
    writer.close()
