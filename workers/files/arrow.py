"""Arrow IPC, as a file (Feather) or as a stream. Columns as in Parquet.

A file is a stream after a magic word, with an index at its end that is not needed here. Limits: Arrow
decompresses a batch of rows as a whole, so its declared size is read from its header beforehand
(Arrow's Message.fbs; the library does not expose it).
"""

import struct
from collections.abc import Iterator

import pyarrow as pa

from workers.files.columns import (
    ROWS_AT_ONCE,
    UserFile,
    check_columns,
    check_expansion,
    internal_batch,
    known_columns,
    reading,
)

FILE_MAGIC = b"ARROW1\0\0"
STREAM_MAGIC = b"\xff\xff\xff\xff"
_FILE_END = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
LARGEST_BATCH = 2 << 30
_ERRORS = (pa.ArrowException, ValueError, KeyError, struct.error)


def read(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    with reading(file.uri, "Arrow IPC", *_ERRORS):
        _check_end(file)
        _check_claims(file)
        with _messages(file) as source, pa.ipc.open_stream(source) as stream:
            check_columns(stream.schema, file)
            names, first_row = known_columns(stream.schema), 0
            for batch in stream:
                known = batch.select(names)
                # Offsets may point anywhere; Arrow checks them only on request.
                known.validate(full=True)
                for start in range(0, known.num_rows, ROWS_AT_ONCE):
                    rows = known.slice(start, ROWS_AT_ONCE)
                    yield internal_batch(rows, first_row, file)
                    first_row += rows.num_rows


def _messages(file: UserFile) -> pa.NativeFile:
    source = pa.memory_map(str(file.path))
    if source.read(len(FILE_MAGIC)) != FILE_MAGIC:
        source.seek(0)
    return source


def _check_end(file: UserFile) -> None:
    """Raises InvalidDataset if the end mark is missing: a stream cut off between batches reads normally."""
    with _messages(file) as source:
        end = _FILE_END if source.tell() else _STREAM_END
        source.seek(max(0, source.size() - len(end)))
        if source.read() != end:
            raise file.wrong("it is cut off: the mark at the end of Arrow IPC is missing")


def _check_claims(file: UserFile) -> None:
    total = 0
    with _messages(file) as source:
        for message in pa.ipc.MessageReader.open_stream(source):
            claimed = _claimed(message)
            if claimed > LARGEST_BATCH:
                raise file.wrong(
                    f"one of its batches claims to unfold to {claimed} bytes, at most "
                    f"{LARGEST_BATCH} are read; write smaller batches"
                )
            total += claimed
    check_expansion(total, file.path, file.uri)


def _claimed(message: pa.ipc.Message) -> int:
    """Declared size of a message's compressed buffers after decompression."""
    if message.type not in ("record batch", "dictionary"):
        return 0
    header = memoryview(message.metadata)
    table = _Table(header, _u32(header, 0)).table(2)
    if message.type == "dictionary":
        table = table.table(1)
    if not table.has(3):  # its buffers are not compressed
        return 0
    body = memoryview(message.body)
    return sum(_unfolded(body, *place) for place in table.pairs(2))


def _unfolded(body: memoryview, offset: int, length: int) -> int:
    """A compressed buffer begins with its decompressed size; -1 means that it is not compressed."""
    if length < 8:
        return length
    (size,) = struct.unpack_from("<q", body, offset)
    return int(size) if size >= 0 else length


def _u32(data: memoryview, position: int) -> int:
    return int(struct.unpack_from("<I", data, position)[0])


class _Table:
    """A flatbuffer table. A table of offsets (vtable) gives the position of each field."""

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self._position = position
        self._offsets = position - struct.unpack_from("<i", data, position)[0]

    def has(self, field: int) -> bool:
        return self._offset(field) != 0

    def table(self, field: int) -> "_Table":
        return _Table(self._data, self._follow(field))

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two 64-bit numbers."""
        start = self._follow(field)
        for index in range(_u32(self._data, start)):
            yield struct.unpack_from("<qq", self._data, start + 4 + 16 * index)

    def _follow(self, field: int) -> int:
        place = self._position + self._offset(field)
        return place + _u32(self._data, place)

    def _offset(self, field: int) -> int:
        (size,) = struct.unpack_from("<H", self._data, self._offsets)
        at = 4 + 2 * field
        if at >= size:
            return 0
        return int(struct.unpack_from("<H", self._data, self._offsets + at)[0])
