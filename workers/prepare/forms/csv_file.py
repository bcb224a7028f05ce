"""CSV with a header: fields separated by commas, quoted as in RFC 4180."""

import csv
from collections.abc import Iterable, Iterator

from workers.prepare.forms.lines import lines, range_chunks
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

_LONGEST_HEADER = 1 << 20


class _Lines:
    """Lines as text for the parser, and where the last one ended.

    Bytes that are not UTF-8 become surrogates, which the check of the values rejects.
    """

    def __init__(self, chunks: Iterable[bytes], start: int, file: StoredFile) -> None:
        self._lines, self._file = lines(chunks, start), file
        self.stop = start
        self.taken: list[bytes] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if line.data is None:
            raise self._file.wrong(f"a line has more than {LONGEST_RECORD} bytes")
        self.stop = line.stop
        self.taken.append(line.data)
        return line.data.decode(errors="surrogateescape")


def _rows(
    chunks: Iterable[bytes], start: int, file: StoredFile
) -> Iterator[tuple[int, int, bytes, list[str]]]:
    """Yield start, stop, bytes and fields of each row. Empty lines are skipped."""
    csv.field_size_limit(LONGEST_RECORD)
    source = _Lines(chunks, start, file)
    reader = csv.reader(source, strict=True)
    while True:
        begin, source.taken = source.stop, []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise file.wrong(
                f"the row at byte {begin} cannot be read as CSV: {error}; fields with commas, quotes or "
                'line ends are in quotes, and a quote in them is written ""'
            ) from error
        if fields:
            yield begin, source.stop, b"".join(source.taken), fields


def _record(row: tuple[int, int, bytes, list[str]], columns: tuple[str, ...]) -> Record:
    start, stop, data, fields = row
    problem = None
    if len(fields) != len(columns):
        problem = f"the row has {len(fields)} fields, and the header has {len(columns)}"
    values = {name: field for name, field in zip(columns, fields, strict=False) if field}
    return Record(start, stop, values, data, problem)


def _scan(file: StoredFile, sides: Sides) -> Scan:
    rows = _rows(file.chunks(), 0, file)
    header = next(rows, None)
    if header is None or len(header[2]) > _LONGEST_HEADER:
        raise file.wrong("it has no header: the first line of CSV names the columns")
    columns = tuple(name.strip() for name in header[3])
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise file.wrong(f"columns {sorted(repeated)} are there more than once")
    check_columns(columns, sides, file, media_inline=False)
    return Scan(_scanned(rows, columns, UnitCutter(sides)), columns, "label" in columns)


def _scanned(
    rows: Iterator[tuple[int, int, bytes, list[str]]], columns: tuple[str, ...], cutter: UnitCutter
) -> Iterator[Record]:
    for row in rows:
        yield _record(row, columns)._replace(begins_unit=cutter.begins(row[1] - row[0]))


def _read(file: StoredFile, unit: RawUnit, _sides: Sides) -> Iterator[Record]:
    for row in _rows(range_chunks(file, unit.start, unit.stop), unit.start, file):
        yield _record(row, unit.columns)


CSV = Form("csv", _scan, _read)
