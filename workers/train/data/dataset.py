"""Rows of a verified dataset: those to train on, and those to measure recall on."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
import torch

from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.model import ModelSpec
from workers.model.evaluation import HeldOut
from workers.model.rows import PairedRows, content_keys
from workers.storage.scratch import Scratch
from workers.storage.shards import Rows, open_in_pieces, rows_of
from workers.storage.verified import open_verified
from workers.train.data.reader import joined, read_rows
from workers.train.data.rows import HeldRows, TrainingRows
from workers.train.data.streamed import StreamedRows

# Both features of all rows as float32; a rank may hold a few copies of that. Not a setting, since the
# order of rows depends on whether a dataset is held or streamed.
HELD_BYTES = 256 * 2**20
# Every query is scored against all rows: more would take minutes without changing recall noticeably.
MOST_HELD_OUT = 16_384


def training_rows(
    dataset: DatasetManifest,
    spec: ModelSpec,
    held_bytes: int = HELD_BYTES,
    scratch: Scratch | None = None,
) -> TrainingRows:
    """Rows held in memory if they fit into `held_bytes`, otherwise streamed from the disk `scratch`.

    Raises InvalidDataset if a shard is not what was verified at intake; streamed rows raise it when
    they are read.
    """
    first, second = (spec.widths[modality] for modality in dataset.pair.modalities)
    if dataset.rows * (first + second) * 4 > held_bytes:
        return StreamedRows(dataset.shards, (first, second), scratch)
    # Hashed one by one, while the next rows are decoded.
    parts = [rows.hashed() for rows in read_rows(dataset.shards, 0, dataset.rows, scratch)]
    return HeldRows(joined(parts).tensors())


def held_out_rows(shards: Sequence[Shard], scratch: Scratch | None = None) -> HeldOut | None:
    """Rows of evaluation shards, a regular sample if there are many; None without shards.

    `scratch` is for a copy of one shard at a time. Raises InvalidDataset, StorageUnavailable.
    """
    every = -(-sum(shard.rows for shard in shards) // MOST_HELD_OUT)
    files = _files(shards, scratch or Scratch())
    return held_out(rows_of(files, every)) if shards else None


def paired_rows(rows: Rows) -> PairedRows:
    """Raw features as tensors, with the content keys of either side."""
    first, second = rows.feature_a_BI, rows.feature_b_BI
    return PairedRows(
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy(content_keys(first)),
        torch.from_numpy(content_keys(second)),
    )


def held_out(rows: Rows) -> HeldOut:
    """Rows to measure recall on. Classes are numbered in the order of their names."""
    labels = None
    if rows.label_B is not None:
        _, numbers = np.unique(rows.label_B.astype(str), return_inverse=True)
        labels = torch.from_numpy(numbers)
    return HeldOut(paired_rows(rows), labels)


def _files(shards: Sequence[Shard], scratch: Scratch) -> Iterator[pq.ParquetFile]:
    """Open the shards one after the other; each is closed before the next one is opened."""
    for shard in shards:
        with open_verified(shard, scratch).reading() as source:
            yield open_in_pieces(source)
