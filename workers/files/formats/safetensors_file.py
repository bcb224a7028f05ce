"""safetensors: tensors in one file, memory-mapped. bfloat16 becomes float32.

The format has no text: ids are generated, and labels are integers.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from workers.files.formats.arrays import NamedArray, read_arrays
from workers.files.formats.user_file import UserFile, reading

LARGEST_HEADER = 1 << 20
# The format's own limit (MAX_HEADER_SIZE of its reader).
_LONGEST_HEADER_OF_FORMAT = 100_000_000
_KINDS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
_KINDS |= {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_KINDS |= {"U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}


def has_header(first_bytes: bytes) -> bool:
    """The format has no magic word, but a length of eight bytes, followed by JSON.

    Encrypted Parquet read as a length exceeds the format's limit, even in the one file of 256 that has a
    brace in the right place.
    """
    length = int.from_bytes(first_bytes[:8], "little")
    return first_bytes[8:9] == b"{" and length <= _LONGEST_HEADER_OF_FORMAT


def read(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    with reading(file.uri, "safetensors", SafetensorError, struct.error, ValueError):
        header = _header(file)
        # The format's own reader validates the header: every byte belongs to exactly one tensor.
        with safe_open(str(file.path), framework="np") as tensors:
            names = list(tensors.keys())
        entries = json.loads(header)
        arrays = {name: _array(entries[name], 8 + len(header), file) for name in names}
        yield from read_arrays(arrays, file, names)


def _header(file: UserFile) -> bytes:
    with file.path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > LARGEST_HEADER:
            raise file.wrong(
                f"its header has {length} bytes, at most {LARGEST_HEADER} are read; "
                "put one tensor for each side into it, not one for each row"
            )
        return stream.read(length)


def _array(entry: dict[str, Any], data_start: int, file: UserFile) -> NamedArray:
    """A tensor in the file, by offset: the reader cannot return bfloat16 without torch."""
    kind, shape = entry["dtype"], tuple(entry["shape"])
    if kind not in _KINDS or not shape:
        return NamedArray(shape, np.dtype("V1"), kind, _never)
    offset = data_start + entry["data_offsets"][0]

    def rows(start: int, stop: int) -> np.ndarray:
        stored = np.memmap(file.path, _KINDS[kind], "r", offset, shape)[start:stop]
        return _from_bfloat16(stored) if kind == "BF16" else np.array(stored)

    dtype = np.dtype(np.float32) if kind == "BF16" else np.dtype(_KINDS[kind])
    return NamedArray(shape, dtype, kind, rows)


def _from_bfloat16(stored: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32, so the conversion is exact."""
    return (stored.astype(np.uint32) << 16).view(np.float32)


def _never(_start: int, _stop: int) -> np.ndarray:
    raise TypeError("only columns are read")
