"""Parquet: the internal form itself, or lists that can be converted to it.

Sizes of features that the footer declares are compared with the file's size, and declared rows with the
rows that are read: Arrow continues if a row group ends early, and stops if it is longer than declared.
pyarrow aborts the process when it is asked about an encrypted column chunk, so the footer is read here
first: Thrift's compact protocol, structs as in parquet.thrift (apache/parquet-format).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmcl.contract.errors import InvalidDataset
from workers.files.columns import (
    FEATURES,
    ROWS_AT_ONCE,
    UserFile,
    check_columns,
    check_expansion,
    internal_batch,
    is_convertible,
    is_internal,
    is_text,
    known_columns,
    reading,
)

MAGIC, ENCRYPTED = b"PAR1", b"PARE"
LARGEST_FOOTER = 32 << 20
_ERRORS = (pa.ArrowException, ValueError)
# Without a buffer Arrow reads a column of a whole row group at once, of any size. With pre-buffering it
# keeps everything in memory until the end of the file, at two thirds of the rate.
BUFFERING: dict[str, Any] = {"buffer_size": 1 << 20, "pre_buffer": False}
_TEXTS = ("id", "label")
_WRITE_AGAIN = "the file is damaged, write it again"
_WIDEST = 8  # bytes of the longest number that a column of features can hold


def read(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    parquet = open_parquet(file.path, file.uri)
    check_columns(parquet.schema_arrow, file)
    first_row = 0
    for batch in known_batches(parquet, file.path, file.uri):
        yield internal_batch(batch, first_row, file)
        first_row += batch.num_rows


def must_be_converted(path: Path, uri: str) -> bool:
    """Whether features are lists of another type than the internal form, such as those of pandas."""
    schema = open_parquet(path, uri).schema_arrow
    types = [schema.field(name).type for name in FEATURES if schema.names.count(name) == 1]
    return any(is_convertible(type_) and not is_internal(type_) for type_ in types)


def open_parquet(path: Path, uri: str) -> pq.ParquetFile:
    """Open the file and check its footer. Raises InvalidDataset."""
    with reading(uri, "Parquet", *_ERRORS):
        _check_footer(path, uri)
        parquet = pq.ParquetFile(path, **BUFFERING)
        _check_declared_rows(parquet.metadata, uri)
        return parquet


def known_batches(parquet: pq.ParquetFile, path: Path, uri: str) -> Iterator[pa.RecordBatch]:
    """Yield batches of our columns, unconverted; texts are dictionary-encoded.

    Features must be lists. Raises InvalidDataset, also if declared rows are missing.
    """
    columns = ColumnReader(parquet, path, uri, known_columns(parquet.schema_arrow))
    # Group by group, as ranks read only the groups that contain their rows.
    for group in range(parquet.num_row_groups):
        yield from columns.batches(group)


class ColumnReader:
    """Reader of some of our columns, one row group after another. Each thread needs a reader of its own.

    The file is mapped into memory: it must be a copy that no other process truncates.
    """

    def __init__(
        self,
        parquet: pq.ParquetFile,
        path: Path,
        uri: str,
        columns: Sequence[str],
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        self._uri, self._columns, self._rows_at_once = uri, list(columns), rows_at_once
        schema = parquet.schema_arrow
        # A text that fills a page and is repeated in every row must not be expanded 8192 times.
        texts = [
            name for name in columns if name not in FEATURES and is_text(schema.field(name).type)
        ]
        with reading(uri, "Parquet", *_ERRORS):
            # Pages of a mapped file are no memory of the process, unlike those of a buffered one.
            self._file = pq.ParquetFile(
                path,
                read_dictionary=texts,
                metadata=parquet.metadata,
                memory_map=True,
                pre_buffer=False,
            )

    def batches(self, group: int) -> Iterator[pa.RecordBatch]:
        """Yield the columns of a row group as `known_batches` does."""
        counts: Counter[str] = Counter()
        with reading(self._uri, "Parquet", *_ERRORS):
            for batch in self._file.iter_batches(
                self._rows_at_once,
                row_groups=[group],
                columns=self._columns,
                # They take a fifth of the processor time, and other files are read at the same time.
                use_threads=False,
            ):
                # Damaged pages may contain dictionary indices out of range and bytes that are not
                # UTF-8; Arrow checks them only on request.
                batch.validate(full=True)
                counts += _counts(batch)
                yield batch
            self._check_read_rows(group, counts)

    def _check_read_rows(self, index: int, counts: Counter[str]) -> None:
        """Check that everything that is declared was read. Raises InvalidDataset."""
        group = self._file.metadata.row_group(index)
        if counts["rows"] != group.num_rows:
            raise InvalidDataset(
                f"{self._uri}: row group {index} declares {group.num_rows} rows, and "
                f"{counts['rows']} were read; {_WRITE_AGAIN}"
            )
        for column, values in _declared_values(group):
            if column in FEATURES and column in self._columns and values != counts[column]:
                raise InvalidDataset(
                    f"{self._uri}: in row group {index} column {column!r} declares {values} "
                    f"numbers, and {counts[column]} were read; {_WRITE_AGAIN}"
                )


def _check_footer(path: Path, uri: str) -> None:
    """Check declared sizes before Arrow reads the file. Raises InvalidDataset."""
    claimed = 0
    with path.open("rb") as file:
        footer = read_footer(file, path.stat().st_size)
    for chunk in column_chunks(footer):
        if chunk.is_encrypted:
            raise InvalidDataset(f"{uri}: it is encrypted Parquet; write it without encryption")
        if chunk.column in FEATURES:
            claimed += chunk.values * _WIDEST
        elif chunk.column in _TEXTS:
            claimed += chunk.page_bytes
    check_expansion(claimed, path, uri)


def _check_declared_rows(metadata: pq.FileMetaData, uri: str) -> None:
    """Check that the footer is consistent. Raises InvalidDataset."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    if rows != metadata.num_rows:
        raise InvalidDataset(
            f"{uri}: its footer declares {metadata.num_rows} rows, and its row groups have {rows} "
            f"together; {_WRITE_AGAIN}"
        )
    for index, group in enumerate(groups):
        for column, values in _declared_values(group):
            if column not in FEATURES and values != group.num_rows:
                raise InvalidDataset(
                    f"{uri}: row group {index} declares {group.num_rows} rows, and its column "
                    f"{column!r} has {values}; {_WRITE_AGAIN}"
                )


def _declared_values(group: pq.RowGroupMetaData) -> Iterator[tuple[str, int]]:
    """Declared values of our columns: one per row, or for features each number of a list."""
    for index in range(group.num_columns):
        column = group.column(index)
        name, _, inner = column.path_in_schema.partition(".")
        if name in FEATURES or (name in _TEXTS and not inner):
            yield name, column.num_values


def _counts(batch: pa.RecordBatch) -> Counter[str]:
    """Rows of a batch, and values of its features as Parquet counts them: a missing or empty list is one."""
    counts = Counter({"rows": batch.num_rows})
    for name in (column for column in FEATURES if column in batch.schema.names):
        lists = batch.column(name)
        counts[name] = len(lists.flatten()) + lists.null_count
        if not pa.types.is_fixed_size_list(lists.type):
            counts[name] += pc.sum(pc.equal(pc.list_value_length(lists), 0)).as_py() or 0
    return counts


class BadFooter(ValueError):
    """The footer is missing, damaged or too large. The message is the reason."""


@dataclass(frozen=True)
class ColumnChunk:
    """`column`: its top-level name. `values`: number of values, counting nested ones.

    `page_bytes`: size of its pages after decompression, still encoded.
    """

    column: str
    values: int
    page_bytes: int
    is_encrypted: bool


def read_footer(file: BinaryIO, size: int) -> bytes:
    """The footer of a file of `size` bytes. Raises BadFooter."""
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > size - 8:
        raise BadFooter("it does not end as Parquet does; it was perhaps cut off")
    if length > LARGEST_FOOTER:
        raise BadFooter(
            f"its footer has {length} bytes, at most {LARGEST_FOOTER} are read; "
            "write fewer columns or larger row groups"
        )
    file.seek(size - 8 - length)
    return file.read(length)


def column_chunks(footer: bytes) -> Iterator[ColumnChunk]:
    """Every column of every row group. Raises BadFooter."""
    try:
        # FileMetaData: row_groups (4). RowGroup: columns (1). ColumnChunk: meta_data (3), crypto_metadata (8),
        # encrypted_column_metadata (9). ColumnMetaData: path_in_schema (3), num_values (5), total_uncompressed_size (6).
        reader = _Thrift(footer)
        for field, kind in reader.fields():
            if field != 4:
                reader.value(kind)
                continue
            for group in reader.elements():
                for chunk in group.get(1, ()):
                    metadata = chunk.get(3, {})
                    path = metadata.get(3) or [b""]
                    sizes = int(metadata.get(5, 0)), int(metadata.get(6, 0))
                    yield ColumnChunk(path[0].decode(), *sizes, 8 in chunk or 9 in chunk)
    except (LookupError, RecursionError, ValueError, TypeError, AttributeError) as error:
        raise BadFooter("its footer is damaged") from error


# Truth values, which are in the kind; a byte; a double; a UUID.
_FIXED_BYTES = {1: 0, 2: 0, 3: 1, 7: 8, 13: 16}


class _Thrift:
    """Reads Thrift's compact protocol: structs as dicts by number of field, lists and sets as lists."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and kind of each field of a struct; the caller must read its value."""
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            yield number, head & 15

    def elements(self) -> Iterator[Any]:
        """Values of a list or a set."""
        head = self._byte()
        for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
            yield self._element(head & 15)

    def value(self, kind: int) -> Any:
        """Read a value. Those that are not needed are returned as bytes, or None."""
        if kind in _FIXED_BYTES:
            return self._bytes(_FIXED_BYTES[kind])
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            return list(self.elements())
        if kind == 12:
            return {field: self.value(inner) for field, inner in self.fields()}
        if kind != 11:
            raise ValueError(f"kind {kind}")
        size = self._varint()
        kinds = self._byte() if size else 0
        for _ in range(size):
            self._element(kinds >> 4)
            self._element(kinds & 15)
        return None

    def _element(self, kind: int) -> Any:
        """A value in a list. Truth values have a byte there, and none in a field."""
        return self._byte() if kind in (1, 2) else self.value(kind)

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise ValueError("a number of more than 64 bits")

    def _bytes(self, size: int) -> bytes:
        self._at += size
        if self._at > len(self._data):
            raise IndexError(self._at)
        return self._data[self._at - size : self._at]

    def _byte(self) -> int:
        return self._bytes(1)[0]
