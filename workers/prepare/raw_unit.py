"""Convert the raw rows of one unit to shards: read them in the bounded child, encode, check and write them."""

import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from cmcl.contract.dataset import RejectedRow, Shard
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from cmcl.storage.versions import digests_of_file
from workers.files.columns import feature_list
from workers.files.shards import FEATURES, ShardWriter, describe_shard
from workers.prepare.encoded_items import EncodedItems
from workers.prepare.encoding import GivenFeatures, SideEncoder
from workers.prepare.features import is_held_out
from workers.prepare.raw_rows import RawUnit
from workers.prepare.unit_reader import UnitReader
from workers.prepare.units import FIRST_FLAT, DatasetContext, FlatPictures, UnitRecord, UnitTask

if TYPE_CHECKING:
    from workers.sandbox.child import Child

Part = Literal["training", "evaluation"]


@dataclass(frozen=True)
class RawUnitEncoder:
    """Encodes the raw rows of one unit."""

    context: DatasetContext
    task: UnitTask
    unit: RawUnit
    store: ObjectStore

    def prepare(
        self, child: "Child", check: Callable[[], None]
    ) -> Generator[int, None, UnitRecord]:
        """Read the unit, and encode the items that were not encoded before. Yields numbers of rows that are done.

        `check` raises after a cancellation, which kills the child: rows in work must not be rejected as if
        they had crashed it.
        """
        with UnitReader(child, self.context.source, self.unit) as reader:
            check()
            stored = self._stored()
            sides = self._sides(reader, stored)
            rows: list[_Kept] = []
            rejected = list(reader.rejected)
            for row in reader.read(sides[0].known, sides[1].known):
                check()
                if isinstance(row, RejectedRow):
                    rejected.append(row)
                    continue
                sides[0].add(row.key_a, row.item_a)
                sides[1].add(row.key_b, row.item_b)
                rows.append(_Kept(row.position, row.id, row.label, row.key_a, row.key_b))
                yield len(rejected) + _rows_done(sides)
            check()
            for side in sides:
                for _ in side.finish():
                    yield len(rejected) + _rows_done(sides)
        for items, side in zip(stored, sides, strict=True):
            if items is not None and side.new:
                items.add(side.new)
        return self._record(reader, rows, sides, rejected)

    def _record(
        self,
        reader: UnitReader,
        rows: list["_Kept"],
        sides: list[SideEncoder | GivenFeatures],
        rejected: list[RejectedRow],
    ) -> UnitRecord:
        """Write the shards of the rows whose items have features. `rejected`: the rows that are left out already."""
        kept: list[_Encoded] = []
        for one in rows:
            first, second = sides[0].feature(one.key_a), sides[1].feature(one.key_b)
            if isinstance(first, str) or isinstance(second, str):
                reason = first if isinstance(first, str) else str(second)
                rejected.append(reader.reject(one.position, one.id, reason))
            else:
                kept.append(_Encoded(one, (first, second)))
        training, evaluation = self._write(kept)
        return UnitRecord(
            training=training,
            evaluation=evaluation,
            rejected=tuple(sorted(rejected, key=lambda row: row.row)),
            encoded=sum(len(side.new) for side in sides),
            flat=self._flat(kept, sides),
        )

    def _flat(
        self, kept: list["_Encoded"], sides: list[SideEncoder | GivenFeatures]
    ) -> dict[str, FlatPictures]:
        modalities = [side.modality for side in self.context.source.sides]
        keys = ((each.row.id, (each.row.key_a, each.row.key_b)) for each in kept)
        ids: dict[str, list[str]] = {}
        for id_, pair in keys:
            for modality, key, side in zip(modalities, pair, sides, strict=True):
                if key in side.flat:
                    ids.setdefault(modality, []).append(id_)
        return {
            modality: FlatPictures(rows=len(found), first=tuple(found[:FIRST_FLAT]))
            for modality, found in ids.items()
        }

    def _stored(self) -> list[EncodedItems | None]:
        """Return the items of each side that were encoded before; None for a side of features."""
        return [
            None
            if encoder is None
            else EncodedItems(self.store, self.context.owner, encoder.spec, encoder.identity)
            for encoder in self.context.encoders
        ]

    def _sides(
        self, reader: UnitReader, stored: list[EncodedItems | None]
    ) -> list[SideEncoder | GivenFeatures]:
        first, last = self.unit.first_row, self.unit.first_row + self.unit.rows - 1
        uri = self.context.source.files[self.task.file].uri
        rows = f"rows {first} to {last} of {uri} of dataset {self.context.dataset}"
        sides: list[SideEncoder | GivenFeatures] = []
        for side, encoder, items, keys in zip(
            self.context.source.sides,
            self.context.encoders,
            stored,
            reader.digests(),
            strict=True,
        ):
            if encoder is None or items is None:
                sides.append(GivenFeatures(side.modality, side.width))
                continue
            port = encoder.connect(self.task.index, f"{side.modality} of {rows}")
            sides.append(SideEncoder(port, encoder.spec, items.find(keys)))
        return sides

    def _write(self, kept: list["_Encoded"]) -> tuple[Shard | None, Shard | None]:
        """Write and upload the shards of both parts."""
        parts: dict[Part, list[_Encoded]] = {"training": [], "evaluation": []}
        for row in kept:
            parts[self._part_of(row.row)].append(row)
        return self._shard("training", parts["training"]), self._shard(
            "evaluation", parts["evaluation"]
        )

    def _part_of(self, row: "_Kept") -> Part:
        context = self.context
        is_named = self.task.file >= context.files_to_train
        if is_named or (context.share is not None and is_held_out(row.key_a, context.share)):
            return "evaluation"
        return "training"

    def _shard(self, part: Part, rows: list["_Encoded"]) -> Shard | None:
        if not rows:
            return None
        context = self.context
        with tempfile.TemporaryDirectory(prefix="cmcl-unit-") as folder:
            path = Path(folder) / part
            with ShardWriter(path) as writer:
                writer.add(self._batch(rows))
            digests = digests_of_file(path)
            key = (
                layout.training_shard(context.dataset, self.task.index, digests.sha256)
                if part == "training"
                # The shards of all units are joined.
                else layout.preparation_evaluation(
                    context.dataset, context.request, self.task.digest(context)
                )
            )
            retry_unavailable(partial(self.store.upload, path, key))
            return describe_shard(path, f"{self.store.uri}/{key}", digests)

    def _batch(self, rows: list["_Encoded"]) -> pa.RecordBatch:
        columns: dict[str, pa.Array] = {"id": pa.array([each.row.id for each in rows], pa.string())}
        if self.unit.has_labels:
            columns["label"] = pa.array([each.row.label for each in rows], pa.string())
        for side, name in enumerate(FEATURES):
            columns[name] = feature_list(np.stack([each.features[side] for each in rows]))
        return pa.record_batch(columns)


def _rows_done(sides: list[SideEncoder | GivenFeatures]) -> int:
    """Return how many rows are done: the mean over the sides with an encoder, as features need no time."""
    encoders = [side for side in sides if isinstance(side, SideEncoder)] or sides
    return sum(side.rows_done for side in encoders) // len(encoders)


@dataclass(frozen=True)
class _Kept:
    """A row without its items."""

    position: int
    id: str
    label: str | None
    key_a: bytes
    key_b: bytes


@dataclass(frozen=True)
class _Encoded:
    """A row with its features (F each)."""

    row: _Kept
    features: tuple[np.ndarray, np.ndarray]
