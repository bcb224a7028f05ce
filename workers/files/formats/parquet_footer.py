"""Read the declared sizes of a Parquet footer without Arrow.

pyarrow aborts the process when it is asked about an encrypted column chunk, so it cannot be asked how
many values a file declares. This reads the few fields that are needed and skips the rest: Thrift's
compact protocol, structs as in parquet.thrift (apache/parquet-format).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC = b"PAR1"
LARGEST_FOOTER = 32 << 20
_DEEPEST = 32
_FIXED_BYTES = {1: 0, 2: 0, 3: 1, 7: 8, 13: 16}
_BYTE_LISTS = {1, 2, 3}
_LONG = 6
_NUMBERS = {4, 5, _LONG}
_BINARY, _LIST, _SET, _MAP, _STRUCT = 8, 9, 10, 11, 12


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


def column_chunks(path: Path) -> Iterator[ColumnChunk]:
    """Every column of every row group. Raises BadFooter."""
    with path.open("rb") as file:
        footer = read_footer(file, path.stat().st_size)
    yield from chunks_of(footer)


def chunks_of(footer: bytes) -> Iterator[ColumnChunk]:
    """Every column of every row group. Raises BadFooter."""
    try:
        yield from _Compact(footer).chunks()
    except (IndexError, RecursionError, UnicodeDecodeError) as error:
        raise BadFooter("its footer is damaged") from error


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


class _Compact:
    """A forward-only reader of one footer."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def chunks(self) -> Iterator[ColumnChunk]:
        """FileMetaData.row_groups (4) -> RowGroup.columns (1) -> ColumnChunk."""
        for field, kind in self._fields():
            if (field, kind) != (4, _LIST):
                self._skip(kind)
                continue
            for _ in range(self._list_size()):
                for group_field, group_kind in self._fields():
                    if (group_field, group_kind) != (1, _LIST):
                        self._skip(group_kind)
                        continue
                    for _ in range(self._list_size()):
                        yield self._chunk()

    def _chunk(self) -> ColumnChunk:
        """ColumnChunk: meta_data (3), crypto_metadata (8)."""
        column, numbers, is_encrypted = "", {5: 0, 6: 0}, False
        for field, kind in self._fields():
            if (field, kind) == (3, _STRUCT):
                column, numbers = self._metadata()
            else:
                is_encrypted = is_encrypted or field in (8, 9)
                self._skip(kind)
        return ColumnChunk(column, numbers[5], numbers[6], is_encrypted)

    def _metadata(self) -> tuple[str, dict[int, int]]:
        """ColumnMetaData: path_in_schema (3), num_values (5), total_uncompressed_size (6)."""
        column, numbers = "", {5: 0, 6: 0}
        for field, kind in self._fields():
            if (field, kind) == (3, _LIST):
                parts = [self._binary() for _ in range(self._list_size())]
                column = parts[0].decode() if parts else ""
            elif field in numbers and kind == _LONG:
                numbers[field] = self._zigzag()
            else:
                self._skip(kind)
        return column, numbers

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Number and kind of each field of a struct; the caller must read or skip its value."""
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            yield field, head & 0x0F

    def _skip(self, kind: int, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise BadFooter("its footer is nested too deeply")
        if kind in _FIXED_BYTES:
            self._at += _FIXED_BYTES[kind]
        elif kind in _NUMBERS:
            self._varint()
        elif kind == _BINARY:
            self._binary()
        elif kind == _STRUCT:
            for _, inner in self._fields():
                self._skip(inner, depth + 1)
        elif kind in (_LIST, _SET):
            self._skip_list(depth)
        else:
            self._skip_map(kind, depth)

    def _skip_list(self, depth: int) -> None:
        head = self._byte()
        size = self._varint() if head >> 4 == 15 else head >> 4
        kind = head & 0x0F
        for _ in range(size):
            if kind in _BYTE_LISTS:
                self._byte()
            else:
                self._skip(kind, depth + 1)

    def _skip_map(self, kind: int, depth: int) -> None:
        if kind != _MAP:
            raise BadFooter("its footer is damaged")
        size = self._varint()
        kinds = self._byte() if size else 0
        for _ in range(size):
            self._skip(kinds >> 4, depth + 1)
            self._skip(kinds & 0x0F, depth + 1)

    def _list_size(self) -> int:
        head = self._byte()
        return self._varint() if head >> 4 == 15 else head >> 4

    def _binary(self) -> bytes:
        size = self._varint()
        data = self._data[self._at : self._at + size]
        self._at += size
        return data

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise BadFooter("its footer is damaged")

    def _byte(self) -> int:
        byte = self._data[self._at]
        self._at += 1
        return byte
