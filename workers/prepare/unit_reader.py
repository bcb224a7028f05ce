"""Read one unit of raw rows: first the digests of its items, then its rows, each with decoded items or a reason.

The spooled items of a unit are decoded in the child (`decode_rows`). A row that crashes the child twice is rejected
with the reason, and reading continues behind it. The machine may be the cause of a first crash.
"""

import json
import os
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, TypeAdapter

from cmcl.contract.dataset import RejectedRow
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import Blake3, Frozen
from workers.encoders.media import DecoderMissing
from workers.prepare.raw_rows import RawSource, RawUnit, Row, SideSpec
from workers.prepare.spool import INDEX, ITEMS, SpoolRequest, spool_unit
from workers.sandbox.child import Child, ChildCrashed
from workers.sandbox.child_process import name_of, named_function
from workers.sandbox.frames import Frame, FrameWriter
from workers.sandbox.items import Item, decode_item, packed, unpacked

SAME: dict[str, Any] = {"kind": "same"}
NOT_DECODED: dict[str, Any] = {"kind": "not decoded"}

ROW_SECONDS = 60.0
_Position = Annotated[int, Field(ge=0)]
_REJECTED = TypeAdapter(list[tuple[_Position, str | None, str]])
_GOOD = TypeAdapter(list[tuple[_Position, str, str | None, Blake3, Blake3]])
_PLACES = TypeAdapter(list[str])
_TRIES = 2
# Longer messages are cut off: one is stored for each rejected row.
_LONGEST_REASON = 2000


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
    items = os.open(output.folder / ITEMS, os.O_RDONLY)
    try:
        for row, places in _spooled(output.folder, request.first):
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
                    raw = os.pread(items, size, offset)
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
    finally:
        os.close(items)


def _spooled(folder: Path, first: int) -> Iterator[tuple[int, list[tuple[int, int, str]]]]:
    with (folder / INDEX).open() as index:
        for row, line in enumerate(index):
            if row >= first:
                yield row, json.loads(line)


def _reason(error: Exception) -> str:
    """Return the sentence of a ValueError; other errors come from libraries, so their class is named as well."""
    text = str(error)[:1000]
    return (
        text
        if type(error) is ValueError
        else f"it cannot be decoded: {type(error).__name__}: {text}"
    )


class UnitReader:
    """Reader of one unit, a context manager. The child must not be used for anything else until it is closed.

    Entering it copies the raw items to the child's folder. `rejected`: rows that were rejected before decoding.
    Iteration yields the other rows in order, each as a Row or a RejectedRow.
    Raises InvalidDataset, InvalidUri, StorageUnavailable, TaskFailed.
    """

    def __init__(
        self,
        child: Child,
        source: RawSource,
        unit: RawUnit,
        *,
        row_seconds: float = ROW_SECONDS,
        decoder: str = name_of(decode_item),
    ) -> None:
        self._child, self._source, self._unit = child, source, unit
        self._row_seconds, self._decoder = row_seconds, decoder
        self._uri = source.files[unit.file].uri
        self._good: list[tuple[int, str, str | None, str, str]] = []
        self._places: list[str] = []
        self.rejected: list[RejectedRow] = []

    def __enter__(self) -> Self:
        request = SpoolRequest(
            ref=self._source.files[self._unit.file],
            unit=self._unit,
            sides=self._source.sides,
            allowed_prefixes=self._source.allowed_prefixes,
            locations=self._source.locations,
        )
        try:
            self._spooled(self._child.repeat_crash(spool_unit, request))
        except BaseException:
            self._child.scratch.clear()
            raise
        return self

    def _spooled(self, frames: list[Frame]) -> None:
        """Read the result of the child, which is not trusted."""
        try:
            rejected, good, places = frames
            self._places = _PLACES.validate_json(bytes(places.body))
            self._good = _GOOD.validate_json(bytes(good.body))
            positions = range(self._unit.first_row, self._unit.first_row + len(self._places))
            if any(position not in positions for position, *_ in self._good):
                raise ValueError("a row has no place")  # noqa: TRY301
            self.rejected = [
                self.reject(row, id_, reason)
                for row, id_, reason in _REJECTED.validate_json(bytes(rejected.body))
            ]
        except (ValueError, LookupError) as error:
            raise InvalidDataset(
                f"{self._uri}: reading it sent no sound result: {error}"
            ) from error

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._child.scratch.clear()

    def __len__(self) -> int:
        """Number of rows that iteration yields."""
        return len(self._good)

    def digests(self) -> tuple[set[bytes], set[bytes]]:
        """Return the digests of the items of both sides of the rows that iteration yields."""
        return (
            {bytes.fromhex(digest) for *_, digest, _ in self._good},
            {bytes.fromhex(digest) for *_, digest in self._good},
        )

    def __iter__(self) -> Iterator[Row | RejectedRow]:
        return self.read((), ())

    def read(
        self, known_a: Collection[bytes], known_b: Collection[bytes]
    ) -> Iterator[Row | RejectedRow]:
        """Iterate, without decoding the items with these digests."""
        known = [frozenset(key.hex() for key in keys) for keys in (known_a, known_b)]
        done, tries = 0, 0
        end = self._child.waited + self._child.limits.seconds
        previous: list[Item | None] = [None, None]
        while done < len(self._good):
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
                if done < len(self._good):
                    self._child.stop()
                    raise ChildCrashed(done, "ended before its last row", "")  # noqa: TRY301
            except ChildCrashed as error:
                self._time_left(end)
                tries += 1
                if tries == _TRIES:
                    position, id_, *_ = self._good[done]
                    yield self.reject(position, id_, f"the decoder {error.reason}")
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
            position, id_, label, *keys = self._good[index]
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
            place=self._places[position - self._unit.first_row],
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
