"""Held-out rows of datasets that a version has learned: read from the store when they are requested.

Shapes: N rows of the dataset, F width of the raw feature.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import (
    InvalidDataset,
    InvalidVersion,
    ObjectNotFound,
    StorageUnavailable,
)
from cmcl.contract.modality import ModalityPair
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.object_store import ObjectStore
from workers.files.columns import FEATURES, float32_rows
from workers.files.scratch import Scratch, open_verified
from workers.files.shards import open_in_pieces, rows_at_once
from workers.serve.errors import NotFound, NotReady, Unprocessable, VersionDamaged
from workers.serve.lru import AsyncLRUCache
from workers.serve.versions.loading import Float32Array, StoredVersions

# Rows that are searched, the first ones: with two sides 1,000 wide, 16 MiB for each dataset in memory.
MOST_ROWS = 2048
_IN_MEMORY = 4
# A shard is read whole, to verify it.
_LARGEST_SHARD = 256 << 20


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """The first held-out rows of a dataset. `stored`: how many there are. `labels`: None without that column."""

    pair: ModalityPair
    stored: int
    ids: tuple[str, ...]
    labels: tuple[str, ...] | None
    features: Mapping[str, Float32Array]

    def __len__(self) -> int:
        return len(self.ids)

    def label(self, row: int) -> str | None:
        return None if self.labels is None else self.labels[row]


class HeldOutSets:
    """Reads held-out rows. The last few sets stay in memory. For use on one event loop."""

    def __init__(self, store: ObjectStore, most_rows: int = MOST_ROWS) -> None:
        """`most_rows`: of each set."""
        self._store = store
        self._most_rows = most_rows
        self._versions = StoredVersions(store)
        self._sets: AsyncLRUCache[str, HeldOutRows] = AsyncLRUCache(_IN_MEMORY)

    async def of(self, model: str, version: int, dataset: str) -> HeldOutRows:
        """The held-out rows of a dataset that this version has learned.

        Raises NotFound, NotReady, Unprocessable, VersionDamaged.
        """
        try:
            pair = await asyncio.to_thread(self._pair, model, version, dataset)
            return await self._sets.get(
                dataset,
                lambda: asyncio.to_thread(_read, self._store, dataset, pair, self._most_rows),
            )
        except StorageUnavailable as error:
            raise NotReady(
                "object storage is unavailable; try again", code="store_unavailable"
            ) from error
        except (InvalidDataset, InvalidVersion) as error:
            raise VersionDamaged(
                f"the held-out rows of dataset {dataset!r} fail their checks", "dataset"
            ) from error

    def _pair(self, model: str, version: int, dataset: str) -> ModalityPair:
        """The pair of a dataset. What the version has not learned is not there, also if another model has it."""
        try:
            learned = self._versions.manifest(model, version).learned
        except ObjectNotFound as error:
            raise NotFound(f"model {model!r} has no version {version}", "model") from error
        for line in learned:
            if line.dataset == dataset:
                return line.pair
        raise NotFound(f"{model}@{version} has learned no dataset {dataset!r}", "dataset")


def _read(store: ObjectStore, dataset: str, pair: ModalityPair, most_rows: int) -> HeldOutRows:
    """Raises NotFound, Unprocessable, InvalidDataset, InvalidVersion, StorageUnavailable."""
    manifest = read_dataset_manifest(store, dataset)
    shards = manifest.evaluation_shards if manifest else ()
    if not shards:
        raise NotFound(f"dataset {dataset!r} has no held-out rows", "dataset")
    tables: list[pa.Table] = []
    left = most_rows
    for shard in shards:
        if left:
            tables.append(_first_rows(shard, left))
            left -= tables[-1].num_rows
    has_labels = all("label" in table.column_names for table in tables)
    return HeldOutRows(
        pair,
        sum(shard.rows for shard in shards),
        _texts(tables, "id"),
        _texts(tables, "label") if has_labels else None,
        {
            modality: np.concatenate([float32_rows(table.column(column)) for table in tables])
            for modality, column in zip(pair.modalities, FEATURES, strict=True)
        },
    )


def _first_rows(shard: Shard, most: int) -> pa.Table:
    if shard.bytes > _LARGEST_SHARD:
        raise Unprocessable(
            f"the held-out rows are in a file of {shard.bytes} bytes; permitted here are {_LARGEST_SHARD}"
        )
    with open_verified(shard, Scratch(_LARGEST_SHARD)).reading() as source:
        file = open_in_pieces(source)
        wanted = [name for name in ("id", "label", *FEATURES) if name in file.schema_arrow.names]
        batches: list[pa.RecordBatch] = []
        for batch in file.iter_batches(min(most, rows_at_once(file.schema_arrow)), columns=wanted):
            batches.append(batch.slice(0, most))
            most -= batches[-1].num_rows
            if not most:
                break
    return pa.Table.from_batches(batches)


def _texts(tables: list[pa.Table], column: str) -> tuple[str, ...]:
    return tuple(str(text) for table in tables for text in table.column(column).to_pylist())
