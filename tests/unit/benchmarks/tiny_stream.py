"""A stream of three small datasets on disk: rows of a class lie together on both sides."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 64
WIDTHS = {"v": 12, "t": 8, "a": 10}
NAMES = ("01_one_vt", "02_two_at", "03_three_va")
_CLASSES = 4


def write_stream(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """All files of a stream, with labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        for part, seed in (("train", number), ("test", 100 + number)):
            write_part(folder / f"{name}.{part}.parquet", features(name, seed), labels())
    return folder


def features(name: str, seed: int, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Both sides: the class's direction in the modality, and noise that both sides share."""
    random = np.random.default_rng(seed)
    shared = np.eye(_CLASSES)[np.arange(rows) % _CLASSES] + 0.2 * random.normal(size=(rows, 4))
    sides = []
    for modality in name[-2:]:
        mixing = np.random.default_rng(ord(modality)).normal(size=(_CLASSES, WIDTHS[modality]))
        noise = 0.2 * random.normal(size=(rows, WIDTHS[modality]))
        sides.append((shared @ mixing + noise).astype(np.float32))
    return sides[0], sides[1]


def labels(rows: int = ROWS) -> list[str | None]:
    return [f"class-{row % _CLASSES}" for row in range(rows)]


def write_part(
    path: Path,
    sides: Sequence[np.ndarray],
    of_rows: Sequence[str | None] | None = None,
    dtype: type[np.number] = np.float32,
) -> None:
    """One file, features as fixed-size lists; without the column `label` if there is none."""
    columns: dict[str, pa.Array] = {"id": pa.array([str(row) for row in range(len(sides[0]))])}
    if of_rows is not None:
        columns["label"] = pa.array(of_rows, pa.string())
    for name, values in zip(("feature_a", "feature_b"), sides, strict=True):
        flat = pa.array(values.astype(dtype).ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    pq.write_table(pa.table(columns), path)
