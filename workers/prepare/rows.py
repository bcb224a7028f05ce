"""Raw rows of one unit: read in the bounded child, encoded, checked, and written as shards.

In the child, `spool_unit` first copies the raw items to the local disk, so that later changes of the user's files have no
effect; then `decode_rows` decodes these copies. A row that crashes the child twice is rejected with the reason, and
reading continues behind it: the machine may be the cause of a first crash.
"""

import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from blake3 import blake3
from pydantic import Field

from cmcl.contract.dataset import RejectedRow, Shard, ShardRef, Uri
from cmcl.contract.errors import InvalidDataset, InvalidUri, ObjectNotFound
from cmcl.contract.modality import Blake3, Frozen
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from cmcl.storage.uris import open_store
from cmcl.storage.versions import digests_of_file
from workers.encoders.decoding import decode_item
from workers.encoders.media import DecoderMissing, Item, packed, unpacked
from workers.files.columns import FEATURES, feature_list
from workers.files.shards import describe_shard, write_shard
from workers.prepare.encoding import EncodedItems, GivenFeatures, SideEncoder
from workers.prepare.features import is_held_out
from workers.prepare.forms.record import (
    BadRow,
    FileName,
    Locator,
    Member,
    RawItem,
    Record,
    StoredFile,
    check_size,
    id_of,
    item_in_file,
    item_of,
    label_of,
    largest,
)
from workers.prepare.plan import FORMS
from workers.prepare.units import (
    FIRST_FLAT,
    DatasetContext,
    DatasetSource,
    FlatPictures,
    RawUnit,
    SideSpec,
    UnitRecord,
    UnitTask,
)
from workers.sandbox.child import Child, ChildCrashed
from workers.sandbox.child_process import Frame, FrameWriter, name_of, named_function

ROW_SECONDS = 60.0
_TRIES = 2
# Longer messages are cut off: one is stored for each rejected row.
_LONGEST_REASON = 2000
_ITEMS, _INDEX = "items", "index.jsonl"
_MOST_THREADS = 16
_BYTES_UNDER_WAY = 128 << 20
_LONGEST_URI, _LONGEST_NAME = 1024, 255
_LONGEST_PLACE = 500

_Position = Annotated[int, Field(ge=0)]
Encoder = SideEncoder | GivenFeatures


class Row(NamedTuple):
    """One good row. `position`: in its file.

    `keys`: digests of the raw bytes of both items (32 bytes). Rows are held out by the first one; items with equal keys
    are equal. `items`: None for an item that is known, or that an earlier row had.
    """

    position: int
    id: str
    label: str | None
    keys: tuple[bytes, bytes]
    items: tuple[Item | None, Item | None]


# A row, and its features (F each).
EncodedRow = tuple[Row, tuple[Any, Any]]


def encode_unit(
    context: DatasetContext,
    task: UnitTask,
    unit: RawUnit,
    child: Child,
    check: Callable[[], None],
) -> Generator[int, None, UnitRecord]:
    """Read a unit, encode the items that were not encoded before, and write its shards. Yields numbers of rows that are done.

    `check` raises after a cancellation, which kills the child: rows in work must not be rejected as if
    they had crashed it.
    """
    store = open_store(context.store)
    stored = [
        EncodedItems(store, context.owner, encoder.spec, encoder.identity) if encoder else None
        for encoder in context.encoders
    ]
    rows: list[Row] = []
    with UnitReader(child, context.source, unit) as reader:
        check()
        sides = _sides(context, task, unit, stored, reader.digests())
        rejected = list(reader.rejected)
        for row in reader.read(sides[0].known, sides[1].known):
            check()
            if isinstance(row, RejectedRow):
                rejected.append(row)
                continue
            for side, key, item in zip(sides, row.keys, row.items, strict=True):
                side.add(key, item)
            rows.append(row._replace(items=(None, None)))
            yield len(rejected) + _rows_done(sides)
        check()
        for side in sides:
            for _ in side.finish():
                yield len(rejected) + _rows_done(sides)
    for items, side in zip(stored, sides, strict=True):
        if items is not None and side.new:
            items.add(side.new)
    encoded, without = _encoded(rows, sides, reader)
    training, held_out = _divided(encoded, context, task)
    assert len(training) + len(held_out) == len(encoded), "a row is on both sides, or on neither"
    return UnitRecord(
        training=_shard(training, context, task, unit, store, is_held=False),
        evaluation=_shard(held_out, context, task, unit, store, is_held=True),
        rejected=tuple(sorted(rejected + without, key=lambda row: row.row)),
        encoded=sum(len(side.new) for side in sides),
        flat=_flat(encoded, sides, context.source),
    )


def _sides(
    context: DatasetContext,
    task: UnitTask,
    unit: RawUnit,
    stored: Sequence[EncodedItems | None],
    digests: tuple[set[bytes], set[bytes]],
) -> list[Encoder]:
    source, last = context.source, unit.first_row + unit.rows - 1
    rows = f"rows {unit.first_row} to {last} of {source.files[task.file].uri} of dataset {context.dataset}"
    sides: list[Encoder] = []
    for side, encoder, items, keys in zip(
        source.sides, context.encoders, stored, digests, strict=True
    ):
        if encoder is None or items is None:
            sides.append(GivenFeatures(side.modality, side.width))
        else:
            encode = encoder.connect(task.index, f"{side.modality} of {rows}")
            sides.append(SideEncoder(encode, encoder.spec, items.find(keys)))
    return sides


def _encoded(
    rows: list[Row], sides: list[Encoder], reader: "UnitReader"
) -> tuple[list[EncodedRow], list[RejectedRow]]:
    """Return the rows with their features, and those of which an item has none."""
    encoded: list[EncodedRow] = []
    rejected: list[RejectedRow] = []
    for row in rows:
        features = sides[0].feature(row.keys[0]), sides[1].feature(row.keys[1])
        if reason := next((each for each in features if isinstance(each, str)), None):
            rejected.append(reader.reject(row.position, row.id, reason))
        else:
            encoded.append((row, features))
    return encoded, rejected


def _rows_done(sides: list[Encoder]) -> int:
    """Return how many rows are done: the mean over the sides with an encoder, as features need no time."""
    encoders = [side for side in sides if isinstance(side, SideEncoder)] or sides
    return sum(side.rows_done for side in encoders) // len(encoders)


def _divided(
    rows: list[EncodedRow], context: DatasetContext, task: UnitTask
) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """Return the rows to train on, and those that are held out."""
    if task.file >= context.files_to_train:
        return [], rows
    if context.share is None:
        return rows, []
    is_held = [is_held_out(row.keys[0], context.share) for row, _ in rows]
    return (
        [row for row, held in zip(rows, is_held, strict=True) if not held],
        [row for row, held in zip(rows, is_held, strict=True) if held],
    )


def _flat(
    rows: list[EncodedRow], sides: list[Encoder], source: DatasetSource
) -> dict[str, FlatPictures]:
    found = {}
    for at, (spec, side) in enumerate(zip(source.sides, sides, strict=True)):
        if ids := [row.id for row, _ in rows if row.keys[at] in side.flat]:
            found[spec.modality] = FlatPictures(rows=len(ids), first=tuple(ids[:FIRST_FLAT]))
    return found


def _shard(
    rows: list[EncodedRow],
    context: DatasetContext,
    task: UnitTask,
    unit: RawUnit,
    store: ObjectStore,
    *,
    is_held: bool,
) -> Shard | None:
    """Write and upload a shard of these rows; None without rows."""
    if not rows:
        return None
    columns = {"id": pa.array([row.id for row, _ in rows], pa.string())}
    if unit.has_labels:
        columns["label"] = pa.array([row.label for row, _ in rows], pa.string())
    for side, name in enumerate(FEATURES):
        columns[name] = feature_list(np.stack([features[side] for _, features in rows]))
    with tempfile.TemporaryDirectory(prefix="cmcl-unit-") as folder:
        path = Path(folder) / "shard"
        write_shard(path, [pa.record_batch(columns)])
        digests = digests_of_file(path)
        key = layout.training_shard(context.dataset, task.index, digests.sha256)
        if is_held:
            # The held-out shards of all units are joined.
            digest = task.digest(context)
            key = layout.preparation_evaluation(context.dataset, context.request, digest)
        retry_unavailable(partial(store.upload, path, key))
        return describe_shard(path, f"{store.uri}/{key}", digests)


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
        first, second = (
            {bytes.fromhex(row.keys[at]) for row in self._spooled.good} for at in (0, 1)
        )
        return first, second

    def read(
        self, known_a: Collection[bytes] = (), known_b: Collection[bytes] = ()
    ) -> Iterator[Row | RejectedRow]:
        """Yield the good rows in order. Items with the known digests, and those of earlier rows, are not decoded."""
        known = {key.hex() for key in known_a}, {key.hex() for key in known_b}
        done, tries, count = 0, 0, len(self._spooled.good)
        end = self._child.waited + self._child.limits.seconds
        while done < count:
            request = DecodeRequest(
                sides=self._source.sides,
                first=done,
                row_seconds=self._row_seconds,
                decoder=self._decoder,
                known=known,
            )
            left = self._time_left(end)
            try:
                with closing(self._child.run(decode_rows, request, left)) as frames:
                    for frame in frames:
                        row = self._result(frame, done, known)
                        if isinstance(row, Row):
                            for keys, key in zip(known, row.keys, strict=True):
                                keys.add(key.hex())
                        yield row
                        done, tries = done + 1, 0
                if done < count:
                    self._child.stop()
                    raise ChildCrashed(done, "ended before its last row", "")  # noqa: TRY301
            except ChildCrashed as error:
                self._time_left(end)
                tries += 1
                if tries == _TRIES:
                    good = self._spooled.good[done]
                    yield self.reject(good.position, good.id, f"the decoder {error.reason}")
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

    def _result(
        self, frame: Frame, index: int, known: tuple[set[str], set[str]]
    ) -> Row | RejectedRow:
        """Return the row of a frame. Raises ChildCrashed if the frame is malformed."""
        try:
            position, id_, label, keys = self._spooled.good[index]
            if int(frame.header["row"]) != index:
                raise ValueError(f"row {frame.header['row']} instead of {index}")  # noqa: TRY301
            if "reason" in frame.header:
                return self.reject(position, id_, str(frame.header["reason"]))
            items: list[Item | None] = []
            start, body = 0, memoryview(frame.body)
            for header, key, sent in zip(frame.header["items"], keys, known, strict=True):
                if not header and key not in sent:
                    raise ValueError("an item was not sent")  # noqa: TRY301
                stop = start + (int(header["bytes"]) if header else 0)
                items.append(unpacked(header, body[start:stop]) if header else None)
                start = stop
            first, second = items
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ChildCrashed(index, f"sent no results: {error}", "") from error
        key_a, key_b = map(bytes.fromhex, keys)
        return Row(position, id_, label, (key_a, key_b), (first, second))

    def reject(self, position: int, id_: str | None, reason: str) -> RejectedRow:
        """Return the row at a position of the file as one that is left out."""
        return RejectedRow(
            id=id_,
            file=self._uri,
            row=position,
            place=self._spooled.places[position - self._unit.first_row],
            reason=reason[:_LONGEST_REASON],
        )


class SpoolRequest(Frozen):
    """Request to spool a unit of the file `ref`. Other fields as in DatasetSource."""

    ref: ShardRef
    unit: RawUnit
    sides: tuple[SideSpec, SideSpec]
    allowed_prefixes: tuple[str, ...]
    locations: dict[Uri, Uri] = Field(default={})


class SpooledRow(NamedTuple):
    """A good row. `keys`: digests of the raw bytes of both items."""

    position: _Position
    id: str
    label: str | None
    keys: tuple[Blake3, Blake3]


class SpooledUnit(Frozen):
    """The rows of a unit. `rejected`: position, id and reason. `places`: where the user finds each row."""

    good: list[SpooledRow] = Field(default=[])
    rejected: list[tuple[_Position, str | None, str]] = Field(default=[])
    places: list[str] = Field(default=[])


def spool_unit(request: SpoolRequest, output: FrameWriter) -> None:
    """Write the raw items of all good rows to the folder, and send a SpooledUnit. Runs in the child.

    Raises InvalidDataset if the file is not the one that was planned; StorageUnavailable.
    """
    unit = request.unit
    last = unit.first_row + unit.rows - 1
    output.step(f"reading rows {unit.first_row} to {last} of {request.ref.uri}")
    locator = Locator(request.allowed_prefixes, request.locations)
    file = StoredFile(request.ref.model_copy(update={"sha256": None}), locator)
    good, rejected, places = [], [], []
    # By digest, because equal items are written once: offset and size in the file, and the digest.
    written: dict[str, tuple[int, int, str]] = {}
    with (
        _Fetcher(file, locator, request.sides) as fetcher,
        (output.folder / _ITEMS).open("wb") as items,
        (output.folder / _INDEX).open("w") as index,
    ):
        for row in _rows(request, file, fetcher):
            places.append(row.place)
            try:
                both = row.items()
            except BadRow as error:
                rejected.append((row.position, row.id, str(error)))
                continue
            first, second = keys = tuple(blake3(data).hexdigest() for data in both)
            for key, data in zip(keys, both, strict=True):
                if key not in written:
                    written[key] = (items.tell(), len(data), key)
                    items.write(data)
            index.write(json.dumps([written[key] for key in keys]) + "\n")
            good.append(SpooledRow(row.position, str(row.id), row.label, (first, second)))
    spooled = SpooledUnit(good=good, rejected=rejected, places=places)
    output.send({}, [spooled.model_dump_json().encode()])


@dataclass(frozen=True)
class _Pending:
    """A row whose items may still be fetched. `place`: where the user finds it."""

    position: int
    place: str
    id: str | None
    label: str | None = None
    sources: tuple["bytes | Future[bytes]", ...] = ()
    problem: str | None = None

    def items(self) -> list[bytes]:
        """Return the raw bytes of both items. Raises BadRow; StorageUnavailable."""
        if self.problem is not None:
            raise BadRow(self.problem)
        return [each if isinstance(each, bytes) else each.result() for each in self.sources]


def _rows(request: SpoolRequest, file: StoredFile, fetcher: "_Fetcher") -> Iterator[_Pending]:
    """Yield the rows of a unit in their order, while items of the next rows are fetched."""
    unit, seal, waiting = request.unit, blake3(), deque[_Pending]()
    duplicates = {
        each.row: f"an earlier row has its id, in {each.first_file}; ids are unique over all files of a "
        "dataset"
        for each in unit.duplicates
    }
    count = 0
    for record in FORMS[unit.form].read(file, unit, request.sides):
        seal.update(record.seal)
        position = unit.first_row + count
        place = _place(record, position, file.ref.file_name)
        waiting.append(_pending(record, position, place, duplicates.get(position), unit, fetcher))
        count += 1
        if len(waiting) > fetcher.at_once:
            yield waiting.popleft()
    if count != unit.rows or seal.hexdigest() != unit.seal:
        raise file.changed()
    yield from waiting


def _place(record: Record, position: int, file: str) -> str:
    """Return where the user finds a row, with the files that it names."""
    row = (
        record.source or f"{file} {f'line {record.line}' if record.line else f'row {position + 1}'}"
    )
    names = [
        str(value) for key, value in record.values.items() if key.endswith("_file_name") and value
    ]
    return ", ".join([row, *names])[:_LONGEST_PLACE]


def _pending(
    record: Record,
    position: int,
    place: str,
    repeated: str | None,
    unit: RawUnit,
    fetcher: "_Fetcher",
) -> _Pending:
    id_ = None
    try:
        if record.problem is None:
            id_ = id_of(record.values)
            label = label_of(record.values, unit.has_labels)
        elif "id" in record.values:
            id_ = id_of(record.values)
        if problem := record.problem or repeated:
            return _Pending(position, place, id_, problem=problem)
        return _Pending(position, place, id_, label, fetcher.sources(record))
    except BadRow as error:
        return _Pending(position, place, id_, problem=str(error))


class _Fetcher:
    """Fetches the items of rows; items in separate files or members are read in threads."""

    def __init__(
        self, file: StoredFile, locator: Locator, sides: tuple[SideSpec, SideSpec]
    ) -> None:
        self._file, self._locator, self._sides = file, locator, sides
        most = max(largest(side) for side in sides)
        self.at_once = max(1, min(_MOST_THREADS, _BYTES_UNDER_WAY // most))
        self._threads = ThreadPoolExecutor(self.at_once, "fetch")
        # The last item of each side that was fetched: consecutive rows may share one.
        self._last: dict[str, tuple[FileName | Member, Future[bytes]]] = {}

    def __enter__(self) -> "_Fetcher":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def sources(self, record: Record) -> tuple["bytes | Future[bytes]", ...]:
        """Return both items, or futures of them. Raises BadRow."""
        found = [item_of(record.values, side) for side in self._sides]
        return tuple(self._source(*each) for each in zip(found, self._sides, strict=True))

    def _source(self, item: RawItem, side: SideSpec) -> "bytes | Future[bytes]":
        if isinstance(item, bytes):
            return item
        last = self._last.get(side.modality)
        if last is not None and last[0] == item:
            return last[1]
        if isinstance(item, FileName):
            fetched = self._threads.submit(self._named, item, side)
        else:
            fetched = self._threads.submit(self._member, item, side)
        self._last[side.modality] = item, fetched
        return fetched

    def _member(self, member: Member, side: SideSpec) -> bytes:
        check_size(member.size, side)
        return item_in_file(self._file.read_range(member.offset, member.offset + member.size), side)

    def _named(self, file: FileName, side: SideSpec) -> bytes:
        shown = repr(file.name[:200])
        try:
            uri = self._locator.beside(self._file.uri, file.name)
            if len(uri) > _LONGEST_URI or any(
                len(part.encode()) > _LONGEST_NAME for part in file.name.split("/")
            ):
                raise BadRow(f"the name of its {side.modality} is too long: {shown}")
            store, key = self._locator.locate(uri)
            # One byte more than is permitted shows that the file is too large.
            read = partial(store.read_range, key, 0, largest(side) + 1)
            data = retry_unavailable(read)
        except InvalidUri as error:
            raise BadRow(f"its {side.modality}: {error}") from error
        except ObjectNotFound as error:
            raise BadRow(f"its {side.modality} is missing: there is no object {shown}") from error
        check_size(len(data), side)
        return item_in_file(data, side)


class DecodeRequest(Frozen):
    """Request for the rows of the spooled unit from index `first` on. `row_seconds`: time limit for one row.

    `decoder`: name of a function like `decode_item`. `known`: digests of items of each side that need not be decoded.
    """

    sides: tuple[SideSpec, SideSpec]
    first: int = Field(ge=0)
    row_seconds: float
    decoder: str
    known: tuple[set[str], set[str]]


def decode_rows(request: DecodeRequest, output: FrameWriter) -> None:
    """Send each row: `{"row", "items"}` and the bytes of both items, or `{"row", "reason"}`. Raises DecoderMissing."""
    decoder = named_function(request.decoder)
    with (output.folder / _ITEMS).open("rb") as items, (output.folder / _INDEX).open() as index:
        for row, line in islice(enumerate(index), request.first, None):
            places = json.loads(line)
            output.step(row, request.row_seconds)
            headers: list[dict[str, Any] | None] = []
            parts: list[bytes | memoryview] = []
            try:
                for side, known, (offset, size, digest) in zip(
                    request.sides, request.known, places, strict=True
                ):
                    if digest in known:
                        headers.append(None)
                        continue
                    raw = os.pread(items.fileno(), size, offset)
                    header, part = packed(
                        np.frombuffer(raw, "<f4")
                        if side.encoder is None
                        else decoder(side.encoder, raw)
                    )
                    headers.append(header)
                    parts += part
            except (MemoryError, ImportError, DecoderMissing):
                raise
            except Exception as error:  # noqa: BLE001 - a decoder may raise anything for damaged bytes
                text = str(error)[:1000]
                if type(error) is not ValueError:
                    # Others than ours come from libraries.
                    text = f"it cannot be decoded: {type(error).__name__}: {text}"
                output.send({"row": row, "reason": text})
                continue
            output.send({"row": row, "items": headers}, parts)
            for known, (_, _, digest) in zip(request.known, places, strict=True):
                known.add(digest)
