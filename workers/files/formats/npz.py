"""npz: a zip archive of NumPy arrays, as `np.savez` and `np.savez_compressed` write it.

Never unpickled. Limits: 16 MiB for the archive's index; declared sizes of arrays relative to the file's
size, checked before anything is decompressed.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO

import numpy as np
import pyarrow as pa

from workers.files.formats.arrays import BYTES_AT_ONCE, NamedArray, read_arrays
from workers.files.formats.user_file import UserFile, reading

MAGIC = b"PK\x03\x04"
# RuntimeError: encrypted. NotImplementedError: an unsupported compression.
_ERRORS = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, NotImplementedError)


def read(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    with reading(file.uri, "npz", *_ERRORS), ExitStack() as stack:
        raw = stack.enter_context(_BoundedFile(file.path))
        archive = stack.enter_context(zipfile.ZipFile(raw))
        members = _members(archive, file)
        arrays = {
            name: _array(stack.enter_context(archive.open(member)), member, file)
            for name, member in members.items()
        }
        names = (member.filename.removesuffix(".npy") for member in archive.infolist())
        yield from read_arrays(arrays, file, names)


class _BoundedFile(io.FileIO):
    """A file with a limit on the size of one read: zipfile reads the whole index at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = BYTES_AT_ONCE + 1 if size is None or size < 0 else size
        data = super().read(min(wanted, BYTES_AT_ONCE + 1)) or b""
        if len(data) > BYTES_AT_ONCE:
            raise zipfile.BadZipFile(f"its index has more than {BYTES_AT_ONCE} bytes")
        return data


def _members(archive: zipfile.ZipFile, file: UserFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays that can be columns, by name; others are not read."""
    wanted = {"id", "label"} | {
        name for side in file.sides for name in (side.column, side.modality)
    }
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name not in wanted:
            continue
        if name in found:
            raise file.wrong(f"array {name!r} is there more than once")
        found[name] = member
    return found


def _array(stream: IO[bytes], member: zipfile.ZipInfo, file: UserFile) -> NamedArray:
    shape, is_fortran, dtype = _header(stream)
    name = member.filename.removesuffix(".npy")
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
        data = _exactly(stream, wanted, name)
        return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])

    return NamedArray(shape, dtype, str(dtype), rows)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _exactly(stream: IO[bytes], size: int, name: str) -> bytes:
    """Read exactly `size` bytes: zipfile may return fewer than requested."""
    data = bytearray()
    while len(data) < size:
        piece = stream.read(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError(f"array {name!r} ends {size - len(data)} bytes too early")
        data += piece
    return bytes(data)
