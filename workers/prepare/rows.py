"""Rows of a unit, in the bounded child: first their raw items are copied to the local disk, then they are decoded.

The decoder reads these copies, so later changes of the user's files have no effect. Files that rows name are
fetched some at a time.
"""

import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any, NamedTuple

import numpy as np
from blake3 import blake3
from pydantic import Field

from cmcl.contract.dataset import ShardRef, Uri
from cmcl.contract.errors import InvalidUri, ObjectNotFound
from cmcl.contract.modality import Blake3, Frozen
from cmcl.storage.object_store import retry_unavailable
from workers.encoders.media import DecoderMissing
from workers.prepare.forms.record import (
    BadRow,
    FileName,
    Member,
    RawItem,
    Record,
    check_size,
    id_of,
    item_in_file,
    item_of,
    label_of,
    largest,
)
from workers.prepare.forms.registry import FORMS
from workers.prepare.stored_file import Locator, StoredFile
from workers.prepare.units import RawUnit, SideSpec
from workers.sandbox.child_process import named_function
from workers.sandbox.frames import FrameWriter
from workers.sandbox.items import packed

_ITEMS, _INDEX = "items", "index.jsonl"
_MOST_THREADS = 16
_BYTES_UNDER_WAY = 128 << 20
_LONGEST_URI, _LONGEST_NAME = 1024, 255
_LONGEST_PLACE = 500

# In place of an item that is the one of the previous row, and of one that need not be decoded.
SAME: dict[str, Any] = {"kind": "same"}
NOT_DECODED: dict[str, Any] = {"kind": "not decoded"}

_Position = Annotated[int, Field(ge=0)]


class SpoolRequest(Frozen):
    """Request to spool a unit of the file `ref`. Other fields as in DatasetSource."""

    ref: ShardRef
    unit: RawUnit
    sides: tuple[SideSpec, SideSpec]
    allowed_prefixes: tuple[str, ...]
    locations: dict[Uri, Uri] = Field(default={})


class SpooledRow(NamedTuple):
    """A good row. `key_a`, `key_b`: digests of the raw bytes of both items."""

    position: _Position
    id: str
    label: str | None
    key_a: Blake3
    key_b: Blake3


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
            keys = [blake3(data).hexdigest() for data in both]
            for key, data in zip(keys, both, strict=True):
                if key not in written:
                    written[key] = (items.tell(), len(data), key)
                    items.write(data)
            index.write(json.dumps([written[key] for key in keys]) + "\n")
            good.append(SpooledRow(row.position, str(row.id), row.label, *keys))
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
    known: tuple[frozenset[str], frozenset[str]]


def decode_rows(request: DecodeRequest, output: FrameWriter) -> None:
    """Send each row: `{"row", "items"}` and the bytes of both items, or `{"row", "reason"}`.

    An item that equals that of the previous row is not sent again. Raises DecoderMissing.
    """
    decoder = named_function(request.decoder)
    previous: list[str] = ["", ""]
    with (output.folder / _ITEMS).open("rb") as items, (output.folder / _INDEX).open() as index:
        for row, line in islice(enumerate(index), request.first, None):
            places = json.loads(line)
            output.step(row, request.row_seconds)
            headers, parts = [], []
            try:
                for at, (side, (offset, size, digest)) in enumerate(
                    zip(request.sides, places, strict=True)
                ):
                    if digest in request.known[at]:
                        headers.append(NOT_DECODED)
                        continue
                    if digest == previous[at]:
                        headers.append(SAME)
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
                previous = ["", ""]
                output.send({"row": row, "reason": _reason(error)})
                continue
            previous = [digest for _, _, digest in places]
            output.send({"row": row, "items": headers}, parts)


def _reason(error: Exception) -> str:
    """Return the sentence of a ValueError; other errors come from libraries, so their class is named as well."""
    text = str(error)[:1000]
    return (
        text
        if type(error) is ValueError
        else f"it cannot be decoded: {type(error).__name__}: {text}"
    )
