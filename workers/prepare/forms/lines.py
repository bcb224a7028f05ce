"""Lines of a file that is read in chunks, and JSONL: one object on each line."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from workers.prepare.forms.record import (
    LONGEST_RECORD,
    Form,
    Record,
    Scan,
    Sides,
    UnitCutter,
    check_columns,
)
from workers.prepare.raw_rows import RawUnit
from workers.prepare.stored_file import StoredFile

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Columns are checked in this many first records.
_FIRST_RECORDS = 100


class Line(NamedTuple):
    """A line with its end. `data` None: it is longer than LONGEST_RECORD."""

    start: int
    stop: int
    data: bytes | None


def lines(chunks: Iterable[bytes], start: int = 0) -> Iterator[Line]:
    """Yield the lines of a file whose chunks begin at byte `start`. A byte order mark at byte 0 is left out."""
    rest: list[bytes] = []
    size, is_long, place = 0, False, start
    for chunk in chunks:
        begin = 0
        if not (rest or is_long) and place == 0 and chunk.startswith(BYTE_ORDER_MARK):
            begin = place = len(BYTE_ORDER_MARK)
        while (end := chunk.find(b"\n", begin) + 1) > 0:
            data = chunk[begin:end]
            if rest or is_long:
                size += len(data)
                is_long = is_long or size > LONGEST_RECORD
                data = b"" if is_long else b"".join((*rest, data))
            else:
                size = len(data)
            yield Line(place, place + size, None if is_long else data)
            rest, place, size, is_long, begin = [], place + size, 0, False, end
        if begin < len(chunk):
            size += len(chunk) - begin
            is_long = is_long or size > LONGEST_RECORD
            rest = [] if is_long else [*rest, chunk[begin:]]
    if size:
        yield Line(place, place + size, None if is_long else b"".join(rest))


def range_chunks(file: StoredFile, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of a unit in chunks."""
    step = 8 << 20
    for place in range(start, stop, step):
        yield file.read_range(place, min(place + step, stop))


def _records(chunks: Iterable[bytes], start: int = 0) -> Iterator[Record]:
    for line in lines(chunks, start):
        if line.data is None or (line.data and not line.data.isspace()):
            yield _record(line)


def _record(line: Line) -> Record:
    if line.data is None:
        problem = (
            f"the row has more than {LONGEST_RECORD} bytes; write large items into files, and their "
            "names into the row"
        )
        return Record(line.start, line.stop, {}, b"long", problem)
    values, wrong = _parsed(line.data)
    return Record(line.start, line.stop, values, line.data, wrong)


def _parsed(data: bytes) -> tuple[dict[str, Any], str | None]:
    """Return the object of a line, and the reason if there is none."""
    try:
        values = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return {}, _why(data, error)
    return (values, None) if isinstance(values, dict) else ({}, "the row is not a JSON object")


def _why(data: bytes, error: Exception) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        return f"the row is not UTF-8: byte {wrong.start} of it is invalid"
    return f"the row is not JSON: {error}"


def _scan(file: StoredFile, sides: Sides) -> Scan:
    return Scan(_scanned(file, sides))


def _scanned(file: StoredFile, sides: Sides) -> Iterator[Record]:
    cutter = UnitCutter(sides)
    first: list[Record] = []
    for record in _records(file.chunks()):
        if len(first) < _FIRST_RECORDS:
            first.append(record)
            if len(first) == _FIRST_RECORDS:
                _check(first, sides, file)
        yield record._replace(begins_unit=cutter.begins(record.stop - record.start))
    if len(first) < _FIRST_RECORDS:
        _check(first, sides, file)


def _check(records: list[Record], sides: Sides, file: StoredFile) -> None:
    """Check the columns of the first records. Records that cannot be read are rejected one by one later."""
    found: dict[str, Any] = {}
    for record in records:
        found.update(record.values)
    if found:
        check_columns(found, sides, file, media_inline=False)


def _read(file: StoredFile, unit: RawUnit, _sides: Sides) -> Iterator[Record]:
    return _records(range_chunks(file, unit.start, unit.stop), unit.start)


JSONL = Form("jsonl", _scan, _read)
