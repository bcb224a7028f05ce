"""Forms whose rows are lines of text, read in chunks: JSONL, and CSV with a header.

JSONL has one object on each line. CSV has fields separated by commas, quoted as in RFC 4180.
"""

import csv
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from workers.prepare.forms.record import (
    LONGEST_RECORD,
    ColumnCheck,
    Form,
    Record,
    Scan,
    Sides,
    UnitCutter,
    check_columns,
)
from workers.prepare.stored_file import StoredFile
from workers.prepare.units import RawUnit

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_HEADER = 1 << 20


class Line(NamedTuple):
    """A line with its end. `data` None: it is longer than LONGEST_RECORD. Numbers count from 1."""

    start: int
    stop: int
    data: bytes | None
    number: int


def lines(chunks: Iterable[bytes], start: int = 0, first: int = 1) -> Iterator[Line]:
    """Yield the lines of a file whose chunks begin at byte `start`, with line `first`.

    A byte order mark at byte 0 is left out.
    """
    rest: list[bytes] = []
    size, is_long, place, number = 0, False, start, first
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
            yield Line(place, place + size, None if is_long else data, number)
            rest, place, size, is_long, begin = [], place + size, 0, False, end
            number += 1
        if begin < len(chunk):
            size += len(chunk) - begin
            is_long = is_long or size > LONGEST_RECORD
            rest = [] if is_long else [*rest, chunk[begin:]]
    if size:
        yield Line(place, place + size, None if is_long else b"".join(rest), number)


def range_chunks(file: StoredFile, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of a unit in chunks."""
    step = 8 << 20
    for place in range(start, stop, step):
        yield file.read_range(place, min(place + step, stop))


def _json_records(chunks: Iterable[bytes], start: int = 0, first: int = 1) -> Iterator[Record]:
    for line in lines(chunks, start, first):
        if line.data is None:
            problem = (
                f"the row has more than {LONGEST_RECORD} bytes; write large items into files, and their "
                "names into the row"
            )
            yield Record(line.start, line.stop, {}, b"long", problem, line=line.number)
        elif not line.data.isspace():
            values, wrong = _json_parsed(line.data)
            yield Record(line.start, line.stop, values, line.data, wrong, line=line.number)


def _json_parsed(data: bytes) -> tuple[dict[str, Any], str | None]:
    """Return the object of a line, and the reason if there is none."""
    try:
        values = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            data.decode()
        except UnicodeDecodeError as wrong:
            return {}, f"the row is not UTF-8: byte {wrong.start} of it is invalid"
        return {}, f"the row is not JSON: {error}"
    return (values, None) if isinstance(values, dict) else ({}, "the row is not a JSON object")


def _json_scanned(file: StoredFile, sides: Sides) -> Iterator[Record]:
    cutter, check = UnitCutter(sides), ColumnCheck(sides, file, media_inline=False, of="column")
    for record in _json_records(file.chunks()):
        # Records that cannot be read are rejected one by one later.
        if record.values:
            check.add(record.values)
        yield record._replace(begins_unit=cutter.begins(record.stop - record.start))
    check.end()


def _json_read(file: StoredFile, unit: RawUnit, _sides: Sides) -> Iterator[Record]:
    chunks = range_chunks(file, unit.start, unit.stop)
    return _json_records(chunks, unit.start, unit.first_line)


JSONL = Form("jsonl", lambda file, sides: Scan(_json_scanned(file, sides)), _json_read)


class _CsvLines:
    """Lines as text for the parser, where the last one ended, and the number of the next one.

    Bytes that are not UTF-8 become surrogates, which the check of the values rejects.
    """

    def __init__(self, chunks: Iterable[bytes], start: int, first: int, file: StoredFile) -> None:
        self._lines, self._file = lines(chunks, start, first), file
        self.stop, self.next = start, first
        self.taken: list[bytes] = []

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if line.data is None:
            raise self._file.wrong(f"a line has more than {LONGEST_RECORD} bytes")
        self.stop, self.next = line.stop, line.number + 1
        self.taken.append(line.data)
        return line.data.decode(errors="surrogateescape")


class _CsvRow(NamedTuple):
    """`line`: the number of the line in which it begins."""

    start: int
    stop: int
    line: int
    data: bytes
    fields: list[str]


def _csv_rows(
    chunks: Iterable[bytes], start: int, first: int, file: StoredFile
) -> Iterator[_CsvRow]:
    """Yield the rows. Empty lines are skipped."""
    csv.field_size_limit(LONGEST_RECORD)
    source = _CsvLines(chunks, start, first, file)
    reader = csv.reader(source, strict=True)
    while True:
        begin, line, source.taken = source.stop, source.next, []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise file.wrong(
                f"the row in line {line} cannot be read as CSV: {error}; fields with commas, quotes or "
                'line ends are in quotes, and a quote in them is written ""'
            ) from error
        if fields:
            yield _CsvRow(begin, source.stop, line, b"".join(source.taken), fields)


def _csv_record(row: _CsvRow, columns: tuple[str, ...]) -> Record:
    problem = None
    if len(row.fields) != len(columns):
        problem = f"the row has {len(row.fields)} fields, and the header has {len(columns)}"
    values = {name: field for name, field in zip(columns, row.fields, strict=False) if field}
    return Record(row.start, row.stop, values, row.data, problem, line=row.line)


def _csv_scan(file: StoredFile, sides: Sides) -> Scan:
    rows = _csv_rows(file.chunks(), 0, 1, file)
    header = next(rows, None)
    if header is None or len(header.data) > _LONGEST_HEADER:
        raise file.wrong("it has no header: the first line of CSV names the columns")
    columns = tuple(name.strip() for name in header.fields)
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise file.wrong(f"columns {sorted(repeated)} are there more than once")
    check_columns(columns, sides, file, media_inline=False)
    return Scan(_csv_scanned(rows, columns, UnitCutter(sides)), columns, "label" in columns)


def _csv_scanned(
    rows: Iterator[_CsvRow], columns: tuple[str, ...], cutter: UnitCutter
) -> Iterator[Record]:
    for row in rows:
        begins = cutter.begins(row.stop - row.start)
        yield _csv_record(row, columns)._replace(begins_unit=begins)


def _csv_read(file: StoredFile, unit: RawUnit, _sides: Sides) -> Iterator[Record]:
    chunks = range_chunks(file, unit.start, unit.stop)
    for row in _csv_rows(chunks, unit.start, unit.first_line, file):
        yield _csv_record(row, unit.columns)


CSV = Form("csv", _csv_scan, _csv_read)
