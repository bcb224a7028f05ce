"""Recognise the format of a file by its first bytes; names and content types are not reliable."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cmcl.contract.dataset import FileFormat
from cmcl.contract.errors import InvalidDataset
from workers.files import arrays, arrow, parquet
from workers.files.columns import UserFile


@dataclass(frozen=True)
class Format:
    """`read` yields a file's rows in the internal form, in order, in bounded memory."""

    name: FileFormat
    read: Callable[[UserFile], Iterator[pa.RecordBatch]]


def _read_hdf5(file: UserFile) -> Iterator[pa.RecordBatch]:
    # Other files are read without the HDF5 library, which takes a tenth of a second to load.
    from workers.files import hdf5

    return hdf5.read(file)


PARQUET = Format("parquet", parquet.read)
_ARROW = Format("arrow", arrow.read)
_SAFETENSORS = Format("safetensors", arrays.read_safetensors)
_BY_MAGIC = {
    parquet.MAGIC: PARQUET,
    arrow.FILE_MAGIC: _ARROW,
    arrow.STREAM_MAGIC: _ARROW,
    arrays.NPZ_MAGIC: Format("npz", arrays.read_npz),
    b"\x89HDF\r\n\x1a\n": Format("hdf5", _read_hdf5),
}
_LONGEST_MAGIC = 16
# Formats that are often sent by mistake, and what to send instead.
_NEARLY = {
    parquet.ENCRYPTED: "it is encrypted Parquet; write it without encryption",
    b"FEA1": "it is Feather version 1; write version 2, which is Arrow IPC",
    b"\x93NUMPY": "it is a single NumPy array; save both sides into one file with np.savez",
    b"PK\x05\x06": "it is a zip archive with nothing in it",
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
        or "by its first bytes it is neither Parquet nor Arrow IPC, npz, safetensors or HDF5"
    )
    raise InvalidDataset(f"{uri}: {what}")


def format_by_magic(first_bytes: bytes) -> Format | None:
    """The format of a file that begins with these bytes; None if it is not supported."""
    for magic, format_ in _BY_MAGIC.items():
        if first_bytes.startswith(magic):
            return format_
    return _SAFETENSORS if arrays.has_safetensors_header(first_bytes) else None


def mistaken_format(first_bytes: bytes) -> str | None:
    """What is wrong with a file of a format that is often sent by mistake, and what to send instead."""
    if not first_bytes:
        return "it is empty"
    return next((words for magic, words in _NEARLY.items() if first_bytes.startswith(magic)), None)
