"""Convert the raw rows of one unit to shards: read them in the bounded child, encode, check and write them.

A row that crashes the child twice is rejected with the reason, and reading continues behind it. The machine may be the
cause of a first crash.
"""

import tempfile
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa

from cmcl.contract.dataset import RejectedRow, Shard
from cmcl.contract.errors import InvalidDataset
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from cmcl.storage.versions import digests_of_file
from workers.files.columns import feature_list
from workers.files.shards import FEATURES, describe_shard, write_shard
from workers.prepare.encoding import EncodedItems, GivenFeatures, SideEncoder
from workers.prepare.features import is_held_out
from workers.prepare.rows import (
    NOT_DECODED,
    SAME,
    DecodeRequest,
    SpooledUnit,
    SpoolRequest,
    decode_rows,
    spool_unit,
)
from workers.prepare.units import (
    FIRST_FLAT,
    DatasetContext,
    DatasetSource,
    FlatPictures,
    RawUnit,
    UnitRecord,
    UnitTask,
)
from workers.sandbox.child import Child, ChildCrashed
from workers.sandbox.child_process import name_of
from workers.sandbox.frames import Frame
from workers.sandbox.items import Item, decode_item, unpacked

ROW_SECONDS = 60.0
_TRIES = 2
# Longer messages are cut off: one is stored for each rejected row.
_LONGEST_REASON = 2000


@dataclass(frozen=True)
class Row:
    """One good row. `position`: in its file.

    `key_a`, `key_b`: digests of the raw bytes of both items (32 bytes). Rows are held out by `key_a`;
    items with equal keys are equal. An item is None if the reader does not decode it.
    """

    position: int
    id: str
    label: str | None
    item_a: Item | None
    item_b: Item | None
    key_a: bytes
    key_b: bytes


Part = Literal["training", "evaluation"]
Encoder = SideEncoder | GivenFeatures
# A row without its items, and its features (F each).
EncodedRow = tuple[Row, tuple[Any, Any]]


@dataclass(frozen=True)
class RawUnitEncoder:
    """Encodes the raw rows of one unit."""

    context: DatasetContext
    task: UnitTask
    unit: RawUnit
    store: ObjectStore

    def prepare(self, child: Child, check: Callable[[], None]) -> Generator[int, None, UnitRecord]:
        """Read the unit, and encode the items that were not encoded before. Yields numbers of rows that are done.

        `check` raises after a cancellation, which kills the child: rows in work must not be rejected as if
        they had crashed it.
        """
        with UnitReader(child, self.context.source, self.unit) as reader:
            check()
            store, owner = self.store, self.context.owner
            stored = [
                EncodedItems(store, owner, encoder.spec, encoder.identity) if encoder else None
                for encoder in self.context.encoders
            ]
            sides = self._sides(reader, stored)
            rows: list[Row] = []
            rejected = list(reader.rejected)
            for row in reader.read(sides[0].known, sides[1].known):
                check()
                if isinstance(row, RejectedRow):
                    rejected.append(row)
                    continue
                sides[0].add(row.key_a, row.item_a)
                sides[1].add(row.key_b, row.item_b)
                rows.append(replace(row, item_a=None, item_b=None))
                yield len(rejected) + _rows_done(sides)
            check()
            for side in sides:
                for _ in side.finish():
                    yield len(rejected) + _rows_done(sides)
        for items, side in zip(stored, sides, strict=True):
            if items is not None and side.new:
                items.add(side.new)
        encoded, others = _encoded(rows, sides, reader)
        return self._record(encoded, [*rejected, *others], sides)

    def _sides(self, reader: "UnitReader", stored: list[EncodedItems | None]) -> list[Encoder]:
        first, last = self.unit.first_row, self.unit.first_row + self.unit.rows - 1
        uri = self.context.source.files[self.task.file].uri
        rows = f"rows {first} to {last} of {uri} of dataset {self.context.dataset}"
        sides: list[Encoder] = []
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

    def _record(
        self, rows: list[EncodedRow], rejected: list[RejectedRow], sides: list[Encoder]
    ) -> UnitRecord:
        """Write the shards of the unit, and describe them."""
        context = self.context
        parts: dict[Part, list[EncodedRow]] = {"training": [], "evaluation": []}
        flat: dict[str, list[str]] = {}
        is_named = self.task.file >= context.files_to_train
        for row, features in rows:
            is_held = is_named or (
                context.share is not None and is_held_out(row.key_a, context.share)
            )
            parts["evaluation" if is_held else "training"].append((row, features))
            for spec, key, side in zip(
                context.source.sides, (row.key_a, row.key_b), sides, strict=True
            ):
                if key in side.flat:
                    flat.setdefault(spec.modality, []).append(row.id)
        return UnitRecord(
            training=self._shard("training", parts["training"]),
            evaluation=self._shard("evaluation", parts["evaluation"]),
            rejected=tuple(sorted(rejected, key=lambda row: row.row)),
            encoded=sum(len(side.new) for side in sides),
            flat={
                modality: FlatPictures(rows=len(ids), first=tuple(ids[:FIRST_FLAT]))
                for modality, ids in flat.items()
            },
        )

    def _shard(self, part: Part, rows: list[EncodedRow]) -> Shard | None:
        """Write and upload the shard of a part; None without rows."""
        if not rows:
            return None
        context = self.context
        columns = {"id": pa.array([row.id for row, _ in rows], pa.string())}
        if self.unit.has_labels:
            columns["label"] = pa.array([row.label for row, _ in rows], pa.string())
        for side, name in enumerate(FEATURES):
            columns[name] = feature_list(np.stack([features[side] for _, features in rows]))
        with tempfile.TemporaryDirectory(prefix="cmcl-unit-") as folder:
            path = Path(folder) / part
            write_shard(path, [pa.record_batch(columns)])
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


def _encoded(
    rows: list[Row], sides: list[Encoder], reader: "UnitReader"
) -> tuple[list[EncodedRow], list[RejectedRow]]:
    """Return the rows with their features, and those of which an item has none."""
    encoded: list[EncodedRow] = []
    rejected: list[RejectedRow] = []
    for row in rows:
        features = sides[0].feature(row.key_a), sides[1].feature(row.key_b)
        reasons = [each for each in features if isinstance(each, str)]
        if reasons:
            rejected.append(reader.reject(row.position, row.id, reasons[0]))
        else:
            encoded.append((row, features))
    return encoded, rejected


def _rows_done(sides: list[Encoder]) -> int:
    """Return how many rows are done: the mean over the sides with an encoder, as features need no time."""
    encoders = [side for side in sides if isinstance(side, SideEncoder)] or sides
    return sum(side.rows_done for side in encoders) // len(encoders)


class UnitReader:
    """Reader of one unit, a context manager. The child must not be used for anything else until it is closed.

    Entering it copies the raw items to the child's folder. `rejected`: rows that were rejected before decoding.
    `read` yields the others. Raises InvalidDataset, InvalidUri, StorageUnavailable, TaskFailed.
    """

    def __init__(
        self,
        child: Child,
        source: DatasetSource,
        unit: RawUnit,
        *,
        row_seconds: float = ROW_SECONDS,
        decoder: str = name_of(decode_item),
    ) -> None:
        self._child, self._source, self._unit = child, source, unit
        self._row_seconds, self._decoder = row_seconds, decoder
        self._uri = source.files[unit.file].uri
        self._spooled = SpooledUnit()
        self.rejected: list[RejectedRow] = []

    def __enter__(self) -> Self:
        source, unit = self._source, self._unit
        request = SpoolRequest(
            ref=source.files[unit.file],
            unit=unit,
            sides=source.sides,
            allowed_prefixes=source.allowed_prefixes,
            locations=source.locations,
        )
        try:
            self._take(self._child.repeat_crash(spool_unit, request))
        except BaseException:
            self._child.scratch.clear()
            raise
        return self

    def _take(self, frames: list[Frame]) -> None:
        """Read the result of the child, which is not trusted."""
        try:
            (frame,) = frames
            self._spooled = SpooledUnit.model_validate_json(bytes(frame.body))
            first = self._unit.first_row
            positions = range(first, first + len(self._spooled.places))
            if any(row.position not in positions for row in self._spooled.good):
                raise ValueError("a row has no place")  # noqa: TRY301
            self.rejected = [self.reject(*rejected) for rejected in self._spooled.rejected]
        except (ValueError, LookupError) as error:
            wrong = f"{self._uri}: reading it sent no sound result: {error}"
            raise InvalidDataset(wrong) from error

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._child.scratch.clear()

    def digests(self) -> tuple[set[bytes], set[bytes]]:
        """Return the digests of the items of both sides of the rows that `read` yields."""
        good = self._spooled.good
        return (
            {bytes.fromhex(row.key_a) for row in good},
            {bytes.fromhex(row.key_b) for row in good},
        )

    def read(
        self, known_a: Collection[bytes] = (), known_b: Collection[bytes] = ()
    ) -> Iterator[Row | RejectedRow]:
        """Yield the good rows in order. Items with the known digests are not decoded."""
        known = [frozenset(key.hex() for key in keys) for keys in (known_a, known_b)]
        done, tries, count = 0, 0, len(self._spooled.good)
        end = self._child.waited + self._child.limits.seconds
        previous: list[Item | None] = [None, None]
        while done < count:
            request = DecodeRequest(
                sides=self._source.sides,
                first=done,
                row_seconds=self._row_seconds,
                decoder=self._decoder,
                known=(known[0], known[1]),
            )
            left = self._time_left(end)
            try:
                with closing(self._child.run(decode_rows, request, left)) as frames:
                    for frame in frames:
                        yield self._result(frame, done, previous)
                        done, tries = done + 1, 0
                if done < count:
                    self._child.stop()
                    raise ChildCrashed(done, "ended before its last row", "")  # noqa: TRY301
            except ChildCrashed as error:
                self._time_left(end)
                tries += 1
                if tries == _TRIES:
                    row = self._spooled.good[done]
                    yield self.reject(row.position, row.id, f"the decoder {error.reason}")
                    done, tries = done + 1, 0

    def _time_left(self, end: float) -> float:
        left = end - self._child.waited
        if left <= 0:
            last = self._unit.first_row + self._unit.rows - 1
            raise InvalidDataset(
                f"{self._uri}: rows {self._unit.first_row} to {last} were not decoded within "
                f"{self._child.limits.seconds:g} s; send smaller items"
            )
        return left

    def _result(self, frame: Frame, index: int, previous: list[Item | None]) -> Row | RejectedRow:
        """Return the row of a frame. Raises ChildCrashed if the frame is malformed."""
        try:
            position, id_, label, *keys = self._spooled.good[index]
            if int(frame.header["row"]) != index:
                raise ValueError(f"row {frame.header['row']} instead of {index}")  # noqa: TRY301
            if "reason" in frame.header:
                return self.reject(position, id_, str(frame.header["reason"]))
            previous[:] = _items(frame.header["items"], memoryview(frame.body), previous)
            key_a, key_b = (bytes.fromhex(key) for key in keys)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ChildCrashed(index, f"sent no results: {error}", "") from error
        return Row(position, id_, label, previous[0], previous[1], key_a, key_b)

    def reject(self, position: int, id_: str | None, reason: str) -> RejectedRow:
        """Return the row at a position of the file as one that is left out."""
        return RejectedRow(
            id=id_,
            file=self._uri,
            row=position,
            place=self._spooled.places[position - self._unit.first_row],
            reason=reason[:_LONGEST_REASON],
        )


def _items(headers: Any, body: memoryview, previous: list[Item | None]) -> list[Item | None]:
    """Return both items. One that equals that of the previous row was not sent, and one that was not decoded is None."""
    items: list[Item | None] = []
    start = 0
    for header, before in zip(headers, previous, strict=True):
        if header == NOT_DECODED:
            items.append(None)
            continue
        if header == SAME:
            if before is None:
                raise ValueError("the first item cannot be the previous one")
            items.append(before)
            continue
        stop = start + int(header["bytes"])
        items.append(unpacked(header, body[start:stop]))
        start = stop
    return items
