"""Copy the raw items of a unit to the local disk and digest each, in the child.

The decoder reads these copies, so later changes of the user's files have no effect. Files that rows name are
fetched some at a time.
"""

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3
from pydantic import Field

from cmcl.contract.dataset import ShardRef, Uri
from cmcl.contract.errors import InvalidUri, ObjectNotFound
from cmcl.contract.modality import Frozen
from cmcl.storage.object_store import retry_unavailable
from workers.prepare.forms.record import BadRow, FileName, Member, Record
from workers.prepare.forms.registry import FORMS
from workers.prepare.items import (
    RawItem,
    check_size,
    id_of,
    item_in_file,
    item_of,
    label_of,
    largest,
)
from workers.prepare.raw_rows import RawUnit, SideSpec
from workers.prepare.stored_file import Locator, StoredFile
from workers.sandbox.frames import FrameWriter

ITEMS, INDEX = "items", "index.jsonl"
_MOST_THREADS = 16
_BYTES_UNDER_WAY = 128 << 20
_LONGEST_URI, _LONGEST_NAME = 1024, 255
_LONGEST_PLACE = 500


class SpoolRequest(Frozen):
    """Request to spool a unit of the file `ref`. Other fields as in RawSource."""

    ref: ShardRef
    unit: RawUnit
    sides: tuple[SideSpec, SideSpec]
    allowed_prefixes: tuple[str, ...]
    locations: dict[Uri, Uri] = Field(default={})


@dataclass(frozen=True)
class Spooled:
    """Place of an item in the file ITEMS, and digest of its raw bytes."""

    offset: int
    size: int
    digest: str


def spool_unit(request: SpoolRequest, output: FrameWriter) -> None:
    """Write ITEMS and INDEX, which has a line for each good row. Runs in the child.

    Sends rows that cannot be used, `[position, id, reason]`, good rows, `[position, id, label, digest, digest]`, and
    where the user finds each row. Raises InvalidDataset if the file is not the one that was planned;
    StorageUnavailable.
    """
    unit = request.unit
    last = unit.first_row + unit.rows - 1
    output.step(f"reading rows {unit.first_row} to {last} of {request.ref.uri}")
    locator = Locator(request.allowed_prefixes, request.locations)
    file = StoredFile(request.ref.model_copy(update={"sha256": None}), locator)
    places: list[str] = []
    good: list[list[Any]] = []
    rejected: list[list[Any]] = []
    with (
        _Fetcher(file, locator, request.sides) as fetcher,
        _Spool(output.folder) as spool,
        (output.folder / INDEX).open("w") as index,
    ):
        for row in _rows(request, file, fetcher):
            places.append(row.place)
            try:
                items = [spool.add(each) for each in row.items()]
            except BadRow as error:
                rejected.append([row.position, row.id, str(error)])
                continue
            keys = [item.digest for item in items]
            good.append([row.position, row.id, row.label, *keys])
            index.write(
                json.dumps([[item.offset, item.size, item.digest] for item in items]) + "\n"
            )
    output.send({"rejected": len(rejected)}, [json.dumps(rejected).encode()])
    output.send({"good": len(good)}, [json.dumps(good).encode()])
    output.send({"places": len(places)}, [json.dumps(places).encode()])


@dataclass(frozen=True)
class _Pending:
    """A row whose items may still be fetched. `place`: where the user finds it."""

    position: int
    place: str
    id: str | None
    label: str | None = None
    sources: tuple["bytes | Future[bytes]", ...] = ()
    problem: str | None = None

    def items(self) -> Iterator[bytes]:
        """Raw bytes of both items. Raises BadRow; StorageUnavailable."""
        if self.problem is not None:
            raise BadRow(self.problem)
        # Both are fetched before the first one is written: a row is spooled as a whole or not at all.
        yield from [
            source if isinstance(source, bytes) else source.result() for source in self.sources
        ]


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


class _Spool:
    """The file ITEMS. Equal items are written once."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / ITEMS).open("wb")
        self._offset = 0
        self._known: dict[str, Spooled] = {}

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.close()

    def add(self, data: bytes) -> Spooled:
        """Write an item. Raises OSError if the disk is full."""
        digest = blake3(data).hexdigest()
        if (known := self._known.get(digest)) is not None:
            return known
        self._file.write(data)
        spooled = Spooled(self._offset, len(data), digest)
        self._offset += len(data)
        self._known[digest] = spooled
        return spooled
