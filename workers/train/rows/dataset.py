"""From a verified dataset to its rows: those to train on, and those to measure recall on."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
import torch

from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.model import ModelSpec
from workers.model.features import content_keys
from workers.model.retrieval import HeldOut
from workers.model.rows import PairedRows
from workers.storage.scratch import Scratch
from workers.storage.shards import Rows, open_in_pieces, rows_of
from workers.storage.verified import open_verified
from workers.train.rows.held import HeldRows
from workers.train.rows.port import TrainingRows
from workers.train.rows.reader import read_rows as read_raw_rows
from workers.train.rows.spool import joined, keyed
from workers.train.rows.streamed import StreamedRows, paired

# Both features of all rows as float32. A rank may hold so much of it some times over, and the order
# of rows depends on which way a dataset goes: it is no setting.
HELD_BYTES = 256 * 2**20
# Every query is scored against all: more would take minutes, and change recall in no digit that counts.
MOST_HELD_OUT = 16_384


def training_rows(
    dataset: DatasetManifest,
    spec: ModelSpec,
    held_bytes: int = HELD_BYTES,
    scratch: Scratch | None = None,
) -> TrainingRows:
    """Held in memory where they are few, else streamed from a local disk, which is `scratch`.

    Raises InvalidDataset if a shard is not what was verified at intake; streamed rows when they are
    read.
    """
    first, second = (spec.modalities[modality] for modality in dataset.pair.modalities)
    if dataset.rows * (first + second) * 4 > held_bytes:
        return StreamedRows(dataset.shards, (first, second), scratch)
    parts = [keyed(raw) for raw in read_raw_rows(dataset.shards, 0, dataset.rows, scratch)]
    return HeldRows(paired(joined(parts)))


def held_out_rows(shards: Sequence[Shard], scratch: Scratch | None = None) -> HeldOut | None:
    """Rows of evaluation shards, evenly chosen where they are many; None where there are none.

    `scratch` is for a copy, of one shard at a time. Raises InvalidDataset, StorageUnavailable.
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


def _files(shards: Sequence[Shard], scratch: Scratch) -> Iterator[pq.ParquetFile]:
    """One after the other: each is gone when the next one is asked for."""
    for shard in shards:
        with open_verified(shard, scratch).reading() as source:
            yield open_in_pieces(source)
