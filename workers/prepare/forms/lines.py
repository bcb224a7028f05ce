"""Forms whose rows are lines of text: JSONL, and CSV with a header.

JSONL has one object on each line. CSV has fields separated by commas, quoted as in RFC 4180.
"""

import csv
import io
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
    StoredFile,
    UnitCutter,
    check_columns,
)
from workers.prepare.units import RawUnit

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_HEADER = 1 << 20
_BUFFER_BYTES = 8 << 20


class Line(NamedTuple):
    """A line with its end. `data` None: it is longer than LONGEST_RECORD. Numbers count from 1."""

    start: int
    stop: int
    data: bytes | None
    number: int


def lines(
    file: StoredFile, start: int = 0, stop: int | None = None, first: int = 1
) -> Iterator[Line]:
    """Yield the lines of a file from byte `start`, with line `first`, to `stop`. A byte order mark is left out.

    A file that is read as a whole has its digest checked at its end. Raises InvalidDataset.
    """
    opened = file.opened()
    with io.BufferedReader(opened, _BUFFER_BYTES) as reader:
        place, number = start, first
        if place == 0 and reader.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK:
            place = len(BYTE_ORDER_MARK)
        reader.seek(place)
        while (stop is None or place < stop) and (data := reader.readline(LONGEST_RECORD + 1)):
            size, rest = len(data), data
            is_long = size > LONGEST_RECORD
            while is_long and not rest.endswith(b"\n") and (rest := reader.readline(_BUFFER_BYTES)):
                size += len(rest)
            yield Line(place, place + size, None if is_long else data, number)
            place, number = place + size, number + 1
        if start == 0 and stop is None:
            opened.check_digest()


def _json_records(found: Iterable[Line]) -> Iterator[Record]:
    for line in found:
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
    for record in _json_records(lines(file)):
        # Records that cannot be read are rejected one by one later.
        if record.values:
            check.add(record.values)
        yield record._replace(begins_unit=cutter.begins(record.stop - record.start))
    check.end()


JSONL = Form(
    "jsonl",
    lambda file, sides: Scan(_json_scanned(file, sides)),
    lambda file, unit, _: _json_records(lines(file, unit.start, unit.stop, unit.first_line)),
)


class _CsvLines:
    """Lines as text for the parser, where the last one ended, and the number of the next one.

    Bytes that are not UTF-8 become surrogates, which the check of the values rejects.
    """

    def __init__(self, file: StoredFile, start: int, stop: int | None, first: int) -> None:
        self._lines, self._file = lines(file, start, stop, first), file
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
    file: StoredFile, start: int = 0, stop: int | None = None, first: int = 1
) -> Iterator[_CsvRow]:
    """Yield the rows. Empty lines are skipped."""
    csv.field_size_limit(LONGEST_RECORD)
    source = _CsvLines(file, start, stop, first)
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
    rows = _csv_rows(file)
    header = next(rows, None)
    if header is None or len(header.data) > _LONGEST_HEADER:
        raise file.wrong("it has no header: the first line of CSV names the columns")
    columns = tuple(name.strip() for name in header.fields)
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise file.wrong(f"columns {sorted(repeated)} are there more than once")
    check_columns(columns, sides, file, media_inline=False)
    cutter = UnitCutter(sides)
    records = (
        _csv_record(row, columns)._replace(begins_unit=cutter.begins(row.stop - row.start))
        for row in rows
    )
    return Scan(records, columns, "label" in columns)


def _csv_read(file: StoredFile, unit: RawUnit, _sides: Sides) -> Iterator[Record]:
    for row in _csv_rows(file, unit.start, unit.stop, unit.first_line):
        yield _csv_record(row, unit.columns)


CSV = Form("csv", _csv_scan, _csv_read)
