"""From verified shards to tensors, and the order in which rows are seen.

Shapes: N rows, B rows of a global batch.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workers.contract.dataset import DatasetManifest, Shard
from workers.model.features import content_keys
from workers.model.retrieval import HeldOut
from workers.model.rows import PairedRows
from workers.storage.shards import Rows, fetch, read_rows


def training_rows(dataset: DatasetManifest) -> PairedRows:
    """All training rows. Raises InvalidDataset if a shard is not what was verified at intake."""
    return paired_rows(_read(dataset.shards))


def held_out_rows(shards: Sequence[Shard]) -> HeldOut | None:
    """The rows of evaluation shards, or None where there are none."""
    return held_out(_read(shards)) if shards else None


def paired_rows(rows: Rows) -> PairedRows:
    """Raw features as tensors, with the content keys of either side."""
    first, second = rows.feature_a_BI, rows.feature_b_BI
    return PairedRows(
        torch.from_numpy(first),
        torch.from_numpy(second),
        content_keys(first),
        content_keys(second),
    )


def held_out(rows: Rows) -> HeldOut:
    """Rows to measure recall on; classes are numbered in the order of their names."""
    labels = None
    if rows.label_B is not None:
        _, numbers = np.unique(rows.label_B.astype(str), return_inverse=True)
        labels = torch.from_numpy(numbers)
    return HeldOut(paired_rows(rows), labels)


def global_batches(rows: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Row numbers of each global batch: a function of the seed and the dataset alone.

    Each epoch is a fresh permutation. Rows that do not fill a last batch wait for the next epoch:
    fewer negatives would make it another task.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order_N = torch.randperm(rows, generator=generator)
        for start in range(0, rows - rows % batch_size, batch_size):
            yield order_N[start : start + batch_size]


def count_updates(rows: int, batch_size: int, epochs: int) -> int:
    """How many batches `global_batches` gives."""
    return rows // batch_size * epochs


def _read(shards: Sequence[Shard]) -> Rows:
    with tempfile.TemporaryDirectory(prefix="cmcl-shards-") as folder:
        paths = []
        for index, shard in enumerate(shards):
            path = Path(folder) / f"{index}.parquet"
            fetch(shard, path)
            paths.append(path)
        return read_rows(paths)
