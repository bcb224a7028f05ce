"""Convert the raw rows of one unit to shards: read them in the bounded child, encode, check and write them.

The keys of encoded rows are derived from their content and encoders, so another dataset or a retry finds them.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from cmcl.contract.dataset import RejectedRow, Shard
from cmcl.contract.errors import ObjectExists, ObjectNotFound
from cmcl.contract.modality import Frozen
from workers.prepare.encoding import GivenFeatures, SideEncoder
from workers.prepare.raw_rows import RawUnit, Row
from workers.prepare.unit_reader import UnitReader
from workers.prepare.units import DatasetContext, UnitRecord, UnitTask
from workers.storage import layout
from workers.storage.formats.columns import feature_list
from workers.storage.intake import is_held_out
from workers.storage.object_store import ObjectStore, retry_unavailable
from workers.storage.shards import FEATURES, ShardWriter, describe_shard
from workers.storage.uris import locate
from workers.storage.versions import digests_of_file

if TYPE_CHECKING:
    from workers.sandbox.child import Child

Part = Literal["training", "evaluation"]


class EncodedRejection(Frozen):
    """A row of an encoded unit that is left out: its position among the unit's rows."""

    position: int
    id: str | None
    reason: str


class EncodedUnit(Frozen):
    """`encoded/<owner>/<encoders>/<unit>.json`: shards of encoded rows. It does not name their file."""

    training: Shard | None = None
    evaluation: Shard | None = None
    rejected: tuple[EncodedRejection, ...] = ()


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
        """Read the unit, and encode it unless the same rows were encoded before. Yields numbers of rows that are
        done.

        `check` raises after a cancellation, which kills the child: rows in work must not be rejected as if
        they had crashed it.
        """
        share = None if self._is_held_out else self.context.share
        with UnitReader(child, self.context.source, self.unit, share) as reader:
            check()
            unread = list(reader.rejected)
            content = self._content(reader.digest, unread)
            found, encoded = self._found(content), 0
            if found is None:
                found, encoded = yield from self._encode(_checked(reader, check), unread, content)
        known = [
            reader.reject(self.unit.first_row + each.position, each.id, each.reason)
            for each in found.rejected
        ]
        rejected = sorted([*unread, *known], key=lambda row: row.row)
        return UnitRecord(
            training=found.training,
            evaluation=found.evaluation,
            rejected=tuple(rejected),
            encoded=encoded,
        )

    @property
    def _is_held_out(self) -> bool:
        return self.task.file >= self.context.files_to_train

    def _content(self, digest: str, unread: list[RejectedRow]) -> str:
        """Return a digest of the rows, of the positions of missing rows, and of how the rows are used."""
        missing = [row.row - self.unit.first_row for row in unread]
        described = [digest, missing, self._is_held_out, self.unit.has_labels]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def _found(self, content: str) -> EncodedUnit | None:
        """Return the same rows if they are encoded already and their shards exist; None otherwise."""
        context = self.context
        key = layout.encoded_unit(context.owner, context.encoders_digest, content)
        try:
            record = retry_unavailable(partial(self.store.read, key))
            found = EncodedUnit.model_validate_json(record)
            for shard in filter(None, (found.training, found.evaluation)):
                place, name = locate(shard.uri)
                if retry_unavailable(partial(place.size, name)) != shard.bytes:
                    return None
        except (ObjectNotFound, ValidationError):
            return None
        return found

    def _encode(
        self, read: Iterator[Row | RejectedRow], unread: list[RejectedRow], content: str
    ) -> Generator[int, None, tuple[EncodedUnit, int]]:
        sides = self._sides()
        missing = {row.row - self.unit.first_row for row in unread}
        positions = [row for row in range(self.unit.rows) if row not in missing]
        rows: list[_Kept] = []
        rejected: list[EncodedRejection] = []
        for row in read:
            if isinstance(row, RejectedRow):
                position = row.row - self.unit.first_row
                rejected.append(EncodedRejection(position=position, id=row.id, reason=row.reason))
                continue
            sides[0].add(row.key_a, row.item_a)
            sides[1].add(row.key_b, row.item_b)
            rows.append(_Kept(positions[row.index], row.id, row.label, row.key_a, row.key_b))
            yield len(unread) + len(rejected) + _rows_done(sides)
        for side in sides:
            for _ in side.finish():
                yield len(unread) + len(rejected) + _rows_done(sides)
        kept: list[_Encoded] = []
        for one in rows:
            first, second = sides[0].feature(one.key_a), sides[1].feature(one.key_b)
            if isinstance(first, str) or isinstance(second, str):
                reason = first if isinstance(first, str) else str(second)
                rejected.append(EncodedRejection(position=one.position, id=one.id, reason=reason))
            else:
                kept.append(_Encoded(one, (first, second)))
        shards = self._write(kept, content)
        rejected.sort(key=lambda row: row.position)
        unit = EncodedUnit(**shards, rejected=tuple(rejected))
        return self._recorded(unit, content), sum(side.encoded for side in sides)

    def _sides(self) -> list[SideEncoder | GivenFeatures]:
        sides = zip(self.context.source.sides, self.context.encoders, strict=True)
        first, last = self.unit.first_row, self.unit.first_row + self.unit.rows - 1
        uri = self.context.source.files[self.task.file].uri
        rows = f"rows {first} to {last} of {uri} of dataset {self.context.dataset}"
        return [
            GivenFeatures(side.modality, side.width)
            if encoder is None
            else SideEncoder(
                encoder.connect(self.task.index, f"{side.modality} of {rows}"), encoder.spec
            )
            for side, encoder in sides
        ]

    def _write(self, kept: list["_Encoded"], content: str) -> dict[str, Shard | None]:
        """Write and upload the shards of both parts."""
        parts: dict[str, Shard | None] = {}
        with tempfile.TemporaryDirectory(prefix="cmcl-unit-") as folder:
            for part in ("training", "evaluation"):
                mine = [each for each in kept if self._part_of(each.row) == part]
                path = Path(folder) / part
                with ShardWriter(path) as writer:
                    if mine:
                        writer.add(self._batch(mine))
                parts[part] = self._uploaded(path, part, content) if mine else None
        return parts

    def _part_of(self, row: "_Kept") -> Part:
        share = self.context.share
        if self._is_held_out or (share is not None and is_held_out(row.key_a, share)):
            return "evaluation"
        return "training"

    def _batch(self, rows: list["_Encoded"]) -> pa.RecordBatch:
        columns: dict[str, pa.Array] = {"id": pa.array([each.row.id for each in rows], pa.string())}
        if self.unit.has_labels:
            columns["label"] = pa.array([each.row.label for each in rows], pa.string())
        for side, name in enumerate(FEATURES):
            columns[name] = feature_list(np.stack([each.features[side] for each in rows]))
        return pa.record_batch(columns)

    def _uploaded(self, path: Path, part: Part, content: str) -> Shard:
        context, digests = self.context, digests_of_file(path)
        if context.keeps_nothing:
            named = layout.training_shard if part == "training" else layout.evaluation_shard
            key = named(context.dataset, self.task.index, digests.sha256)
        else:
            key = layout.encoded_shard(
                context.owner, context.encoders_digest, content, part, digests.sha256
            )
        retry_unavailable(partial(self.store.upload, path, key))
        return describe_shard(path, f"{self.store.uri}/{key}", digests)

    def _recorded(self, unit: EncodedUnit, content: str) -> EncodedUnit:
        """Write the record. If two processes encode the same rows, the first record counts."""
        context = self.context
        if context.keeps_nothing:
            return unit
        key = layout.encoded_unit(context.owner, context.encoders_digest, content)
        record = unit.model_dump_json().encode()
        try:
            retry_unavailable(partial(self.store.create, key, record))
        except ObjectExists:
            found = self._found(content)
            if found is not None:
                return found
            # Its shards have been deleted.
            retry_unavailable(partial(self.store.put, key, record))
        return unit


def _rows_done(sides: list[SideEncoder | GivenFeatures]) -> int:
    """Return how many rows are done: the mean over the sides with an encoder, as features need no time."""
    encoders = [side for side in sides if isinstance(side, SideEncoder)] or sides
    return sum(side.rows_done for side in encoders) // len(encoders)


def _checked(reader: UnitReader, check: Callable[[], None]) -> Iterator[Row | RejectedRow]:
    for row in reader:
        check()
        yield row
    check()


@dataclass(frozen=True)
class _Kept:
    """A row without its items. `position`: in its unit."""

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
