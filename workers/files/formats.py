"""Formats of feature files: Parquet, Arrow IPC, npz and safetensors. The format is recognised by the first bytes.

Names and content types are not reliable. Arrays of npz and safetensors: `feature_a` and `feature_b`, or the names of the
pair's two modalities, of shape (rows, width); optional `id` and `label` of shape (rows,), text or whole numbers. Without
`id`, ids are made from the file's digest and the row's number: unique, and stable when the file is read again.
"""

import io
import json
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from cmcl.contract.dataset import FileFormat
from cmcl.contract.errors import InvalidDataset
from workers.files.columns import (
    FEATURES,
    HALF_OR_SINGLE,
    LONGEST_TEXT,
    ROWS_AT_ONCE,
    Side,
    UserFile,
    check_columns,
    check_expansion,
    feature_list,
    internal_batch,
    is_text,
    known_columns,
    reading,
)

# Parquet: the internal form itself, or lists that can be converted to it. Sizes of features that the footer declares are
# compared with the file's size, and declared rows with the rows that are read: Arrow continues if a row group ends early,
# and stops if it is longer than declared. Arrow ends the process for an encrypted column behind a plain footer, and perhaps
# for damage: read users' files in a bounded child only.

PARQUET_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
LARGEST_FOOTER = 32 << 20
_PARQUET_ERRORS = (pa.ArrowException, ValueError)
# Without a buffer Arrow reads a column of a whole row group at once, of any size. With pre-buffering it
# keeps everything in memory until the end of the file, at two thirds of the rate.
BUFFERING: dict[str, Any] = {"buffer_size": 1 << 20, "pre_buffer": False}
_TEXTS = ("id", "label")
_WRITE_AGAIN = "the file is damaged, write it again"
_WIDEST = 8  # bytes of the longest number that a column of features can hold


def read_parquet(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    parquet = open_parquet(file.path, file.uri)
    check_columns(parquet.schema_arrow, file)
    first_row = 0
    with reading(file.uri, "Parquet", *_PARQUET_ERRORS):
        for batch in _known_batches(parquet.metadata, file.path, file.uri):
            yield internal_batch(batch, first_row, file)
            first_row += batch.num_rows


def is_internal(path: Path, uri: str) -> bool:
    """Whether features are stored in the internal form, and not as other lists, such as those of pandas."""
    schema = open_parquet(path, uri).schema_arrow
    types = [schema.field(name).type for name in FEATURES if schema.names.count(name) == 1]
    return all(
        pa.types.is_fixed_size_list(each) and each.value_type in HALF_OR_SINGLE for each in types
    )


def open_parquet(path: Path, uri: str) -> pq.ParquetFile:
    """Open the file and check its footer. Raises InvalidDataset."""
    with reading(uri, "Parquet", *_PARQUET_ERRORS):
        with path.open("rb") as file:
            read_footer(file, path.stat().st_size)
        parquet = pq.ParquetFile(path, **BUFFERING)
        _check_sizes(parquet.metadata, path, uri)
        _check_declared_rows(parquet.metadata, uri)
        return parquet


def _known_batches(footer: pq.FileMetaData, path: Path, uri: str) -> Iterator[pa.RecordBatch]:
    """Yield batches of our columns, unconverted; texts are dictionary-encoded. Features must be lists.

    The file is mapped into memory: it must be a copy that no other process truncates. Raises InvalidDataset, also if
    declared rows are missing.
    """
    schema = footer.schema.to_arrow_schema()
    columns = known_columns(schema)
    # Pages of a mapped file are no memory of the process, unlike those of a buffered one. A text that fills a page and is
    # repeated in every row must not be expanded 2048 times.
    texts = [name for name in columns if name not in FEATURES and is_text(schema.field(name).type)]
    file = pq.ParquetFile(
        path, read_dictionary=texts, metadata=footer, memory_map=True, pre_buffer=False
    )
    # Group by group, as ranks read only the groups that contain their rows.
    for group in range(footer.num_row_groups):
        counts: Counter[str] = Counter()
        # Arrow's threads take a fifth of the processor time, and other files are read at the same time.
        for batch in file.iter_batches(
            ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False
        ):
            # Damaged pages may contain dictionary indices out of range and bytes that are not UTF-8; Arrow checks them
            # only on request.
            batch.validate(full=True)
            counts += _counts(batch)
            yield batch
        _check_read_rows(footer.row_group(group), group, counts, uri)


def _check_read_rows(
    group: pq.RowGroupMetaData, index: int, counts: Counter[str], uri: str
) -> None:
    """Check that everything that is declared was read. Raises InvalidDataset."""
    if counts["rows"] != group.num_rows:
        raise InvalidDataset(
            f"{uri}: row group {index} declares {group.num_rows} rows, and "
            f"{counts['rows']} were read; {_WRITE_AGAIN}"
        )
    for column, values in _declared_values(group):
        if column in FEATURES and values != counts[column]:
            raise InvalidDataset(
                f"{uri}: in row group {index} column {column!r} declares {values} "
                f"numbers, and {counts[column]} were read; {_WRITE_AGAIN}"
            )


def _check_sizes(metadata: pq.FileMetaData, path: Path, uri: str) -> None:
    """Check declared sizes before Arrow reads any page. Raises InvalidDataset."""
    claimed = 0
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        for chunk in (group.column(index) for index in range(group.num_columns)):
            name = chunk.path_in_schema.partition(".")[0]
            if name in FEATURES:
                claimed += chunk.num_values * _WIDEST
            elif name in _TEXTS:
                # After decompression, still encoded.
                claimed += chunk.total_uncompressed_size
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
    for name in FEATURES:
        lists = batch.column(name)
        counts[name] = len(lists.flatten()) + lists.null_count
        if not pa.types.is_fixed_size_list(lists.type):
            counts[name] += pc.sum(pc.equal(pc.list_value_length(lists), 0)).as_py() or 0
    return counts


def read_footer(file: BinaryIO, size: int) -> bytes:
    """The footer of a file of `size` bytes. Raises ValueError."""
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != PARQUET_MAGIC or length > size - 8:
        raise ValueError("it does not end as Parquet does; it was perhaps cut off")
    if length > LARGEST_FOOTER:
        raise ValueError(
            f"its footer has {length} bytes, at most {LARGEST_FOOTER} are read; "
            "write fewer columns or larger row groups"
        )
    file.seek(size - 8 - length)
    return file.read(length)


# Named arrays.

_BYTES_AT_ONCE = 16 << 20
# In a message about names that are missing.
_MOST_NAMES = 20


@dataclass(frozen=True)
class NamedArray:
    """An array in a file. `read(start, stop)` returns rows; calls must be sequential.

    `stored_as`: the format's own name for the element type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stored_as: str
    read: Callable[[int, int], np.ndarray]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


def wanted_names(file: UserFile) -> set[str]:
    """The names of arrays that can be columns. Others are not read."""
    return {"id", "label", *(name for side in file.sides for name in (side.column, side.modality))}


def read_arrays(
    arrays: Mapping[str, NamedArray], file: UserFile, present: Iterable[str]
) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. `present`: names of all arrays of the file. Raises InvalidDataset."""
    found = ", ".join(sorted(islice(present, _MOST_NAMES))) or "no arrays"
    chosen = {side.column: _features_of(arrays, side, file, found) for side in file.sides}
    texts = [name for name in ("id", "label") if name in arrays]
    chosen |= {name: _text_of(arrays[name], name, file) for name in texts}
    counts = {name: array.shape[0] for name, array in chosen.items()}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{name} has {rows}" for name, rows in counts.items())
        raise file.wrong(f"its arrays have different numbers of rows: {listed}")
    rows = counts["feature_a"]
    row_bytes = sum(array.row_bytes for array in chosen.values())
    check_expansion(rows * row_bytes, file.path, file.uri)
    step = max(1, min(ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, row_bytes)))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        columns = {}
        if "id" not in texts:
            made = [f"{file.sha256[:16]}-{row}" for row in range(start, stop)]
            columns["id"] = pa.array(made, pa.string())
        for name in texts:
            columns[name] = _texts(chosen[name].read(start, stop), name, start, file)
        for side in file.sides:
            columns[side.column] = feature_list(chosen[side.column].read(start, stop))
        yield pa.record_batch(columns)


def _features_of(
    arrays: Mapping[str, NamedArray], side: Side, file: UserFile, found: str
) -> NamedArray:
    names = [name for name in (side.column, side.modality) if name in arrays]
    if len(names) != 1:
        raise file.wrong(
            f"one array must be called {side.column!r} or {side.modality!r}; the file has: {found}"
        )
    array = arrays[names[0]]
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise file.wrong(
            f"array {names[0]!r} must be of float16, bfloat16, float32 or float64, is {array.stored_as}"
        )
    if len(array.shape) != 2:
        raise file.wrong(f"array {names[0]!r} must be (rows, width), has shape {array.shape}")
    file.check_width(side, array.shape[1], f"array {names[0]!r}")
    return array


def _text_of(array: NamedArray, name: str, file: UserFile) -> NamedArray:
    if len(array.shape) != 1:
        raise file.wrong(f"array {name!r} must be (rows,), has shape {array.shape}")
    if array.dtype.kind not in "USiu":
        raise file.wrong(f"array {name!r} must be text or whole numbers, is {array.stored_as}")
    if array.dtype.itemsize > 4 * LONGEST_TEXT:
        raise file.wrong(
            f"array {name!r} has texts of {array.dtype.itemsize} bytes; "
            f"at most {LONGEST_TEXT} are permitted"
        )
    return array


def _texts(values_B: np.ndarray, name: str, first_row: int, file: UserFile) -> pa.Array:
    """Text unchanged, bytes decoded as UTF-8, numbers as decimals."""
    texts: list[str] = []
    for row, value in enumerate(values_B.tolist(), first_row):
        try:
            texts.append(value.decode() if isinstance(value, bytes) else str(value))
        except UnicodeDecodeError as error:
            raise file.wrong(f"array {name!r} is no UTF-8 text in row {row}") from error
    return pa.array(texts, pa.string())


# npz: a zip archive of NumPy arrays, as `np.savez` and `np.savez_compressed` write it. Never unpickled. Limits: 16 MiB
# for the archive's index; declared sizes of arrays relative to the file's size, checked before anything is decompressed.

NPZ_MAGIC = b"PK\x03\x04"
# RuntimeError: encrypted. NotImplementedError: an unsupported compression.
_NPZ_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, ValueError, EOFError),
    *(RuntimeError, NotImplementedError),
)


def read_npz(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    with reading(file.uri, "npz", *_NPZ_ERRORS), ExitStack() as stack:
        raw = stack.enter_context(_BoundedFile(file.path))
        archive = stack.enter_context(zipfile.ZipFile(raw))
        wanted, present, arrays = wanted_names(file), [], {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            present.append(name)
            if name in arrays:
                raise file.wrong(f"array {name!r} is there more than once")
            if name in wanted:
                stream = stack.enter_context(archive.open(member))
                arrays[name] = _npz_array(stream, name, file)
        yield from read_arrays(arrays, file, present)


class _BoundedFile(io.FileIO):
    """A file with a limit on the size of one read: zipfile reads the whole index at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = _BYTES_AT_ONCE + 1 if size is None or size < 0 else size
        data = super().read(min(wanted, _BYTES_AT_ONCE + 1)) or b""
        if len(data) > _BYTES_AT_ONCE:
            raise zipfile.BadZipFile(f"its index has more than {_BYTES_AT_ONCE} bytes")
        return data


def _npz_array(stream: IO[bytes], name: str, file: UserFile) -> NamedArray:
    is_first_version = np.lib.format.read_magic(stream) == (1, 0)
    read_header = (
        np.lib.format.read_array_header_1_0
        if is_first_version
        else np.lib.format.read_array_header_2_0
    )
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject or dtype.fields is not None:
        raise file.wrong(
            f"array {name!r} is of Python objects, which are never unpickled; "
            "save text with a type such as 'U32', numbers as numbers"
        )
    if is_fortran and len(shape) > 1:
        raise file.wrong(
            f"array {name!r} is stored column by column; save np.ascontiguousarray of it"
        )
    if not shape:
        raise file.wrong(f"array {name!r} is a single value, not one for each row")

    def rows(start: int, stop: int) -> np.ndarray:
        wanted = (stop - start) * dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        data = bytearray()
        # zipfile may return fewer bytes than requested.
        while len(data) < wanted:
            piece = stream.read(min(wanted - len(data), 1 << 20))
            if not piece:
                raise EOFError(f"array {name!r} ends {wanted - len(data)} bytes too early")
            data += piece
        return np.frombuffer(bytes(data), dtype).reshape(stop - start, *shape[1:])

    return NamedArray(shape, dtype, str(dtype), rows)


# safetensors: tensors in one file, memory-mapped. bfloat16 becomes float32. The format has no text: ids are generated,
# and labels are integers.

_LARGEST_HEADER = 1 << 20
# The format's own limit (MAX_HEADER_SIZE of its reader).
_LONGEST_HEADER_OF_FORMAT = 100_000_000
_KINDS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
_KINDS |= {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_KINDS |= {"U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}


def has_safetensors_header(first_bytes: bytes) -> bool:
    """The format has no magic word, but a length of eight bytes, followed by JSON.

    Encrypted Parquet read as a length exceeds the format's limit, even in the one file of 256 that has a
    brace in the right place.
    """
    length = int.from_bytes(first_bytes[:8], "little")
    return first_bytes[8:9] == b"{" and length <= _LONGEST_HEADER_OF_FORMAT


def read_safetensors(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    with reading(file.uri, "safetensors", SafetensorError, struct.error, ValueError):
        with file.path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _LARGEST_HEADER:
                raise file.wrong(
                    f"its header has {length} bytes, at most {_LARGEST_HEADER} are read; "
                    "put one tensor for each side into it, not one for each row"
                )
            header = stream.read(length)
        # The format's own reader validates the header: every byte belongs to exactly one tensor.
        with safe_open(str(file.path), framework="np") as tensors:
            names = list(tensors.keys())
        entries = json.loads(header)
        arrays = {name: _tensor(entries[name], 8 + length, file) for name in names}
        yield from read_arrays(arrays, file, names)


def _tensor(entry: dict[str, Any], data_start: int, file: UserFile) -> NamedArray:
    """A tensor in the file, by offset: the reader cannot return bfloat16 without torch."""
    kind, shape = entry["dtype"], tuple(entry["shape"])
    offset = data_start + entry["data_offsets"][0]

    def rows(start: int, stop: int) -> np.ndarray:
        stored = np.memmap(file.path, _KINDS[kind], "r", offset, shape)[start:stop]
        if kind == "BF16":
            # It is the upper half of a float32, so the conversion is exact.
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return np.array(stored)

    # Arrays of other types, and single values, are no columns: they are rejected before they are read.
    dtype = np.dtype(_KINDS.get(kind, "V1") if kind != "BF16" else np.float32)
    return NamedArray(shape, dtype if shape else np.dtype("V1"), kind, rows)


# Arrow IPC, as a file (Feather) or as a stream, with columns as in Parquet. A file is a stream after a magic word, with an
# index at its end that is not needed here.

FILE_MAGIC = b"ARROW1\0\0"
STREAM_MAGIC = b"\xff\xff\xff\xff"
_FILE_END = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_ARROW_ERRORS = (pa.ArrowException, ValueError, KeyError)


def read_arrow(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    with reading(file.uri, "Arrow IPC", *_ARROW_ERRORS):
        _check_end(file)
        with _messages(file) as source, pa.ipc.open_stream(source) as stream:
            check_columns(stream.schema, file)
            names, first_row, unfolded = known_columns(stream.schema), 0, 0
            for batch in stream:
                known = batch.select(names)
                # Offsets may point anywhere; Arrow checks them only on request.
                known.validate(full=True)
                unfolded += known.nbytes
                check_expansion(unfolded, file.path, file.uri)
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


@dataclass(frozen=True)
class Format:
    """`read` yields a file's rows in the internal form, in order, in bounded memory."""

    name: FileFormat
    read: Callable[[UserFile], Iterator[pa.RecordBatch]]


PARQUET = Format("parquet", read_parquet)
_ARROW = Format("arrow", read_arrow)
_SAFETENSORS = Format("safetensors", read_safetensors)
_BY_MAGIC = {
    PARQUET_MAGIC: PARQUET,
    FILE_MAGIC: _ARROW,
    STREAM_MAGIC: _ARROW,
    NPZ_MAGIC: Format("npz", read_npz),
}
_LONGEST_MAGIC = 16
# Formats that are often sent by mistake, and what to send instead.
_NEARLY = {
    _ENCRYPTED: "it is encrypted Parquet; write it without encryption",
    b"FEA1": "it is Feather version 1; write version 2, which is Arrow IPC",
    b"\x93NUMPY": "it is a single NumPy array; save both sides into one file with np.savez",
    b"PK\x05\x06": "it is a zip archive with nothing in it",
    b"\x89HDF": "it is HDF5; save the arrays of both sides into one file with np.savez",
    b"\x1f\x8b": "it is compressed by gzip as a whole; send what is inside",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd as a whole; send what is inside",
}


def format_of(path: Path, uri: str) -> Format:
    """Return the format of a file. Raises InvalidDataset if it is not supported."""
    with path.open("rb") as stream:
        first_bytes = stream.read(_LONGEST_MAGIC)
    found = format_by_magic(first_bytes)
    if found is not None:
        return found
    what = (
        mistaken_format(first_bytes)
        or "by its first bytes it is neither Parquet nor Arrow IPC, npz or safetensors"
    )
    raise InvalidDataset(f"{uri}: {what}")


def format_by_magic(first_bytes: bytes) -> Format | None:
    """The format of a file that begins with these bytes; None if it is not supported."""
    for magic, format_ in _BY_MAGIC.items():
        if first_bytes.startswith(magic):
            return format_
    return _SAFETENSORS if has_safetensors_header(first_bytes) else None


def mistaken_format(first_bytes: bytes) -> str | None:
    """What is wrong with a file of a format that is often sent by mistake, and what to send instead."""
    if not first_bytes:
        return "it is empty"
    return next((words for magic, words in _NEARLY.items() if first_bytes.startswith(magic)), None)
