"""Recognise the format of a file by its first bytes; names and content types are not reliable."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cmcl.contract.dataset import FileFormat
from cmcl.contract.errors import InvalidDataset
from workers.files.formats import (
    arrow,
    hdf5_subprocess,
    npz,
    parquet,
    parquet_footer,
    safetensors_file,
)
from workers.files.formats.user_file import UserFile

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
LONGEST_MAGIC = 16


@dataclass(frozen=True)
class Format:
    """`read` yields a file's rows in the internal form, in order, in bounded memory."""

    name: FileFormat
    read: Callable[[UserFile], Iterator[pa.RecordBatch]]


PARQUET = Format("parquet", parquet.read)
ARROW = Format("arrow", arrow.read)
NPZ = Format("npz", npz.read)
SAFETENSORS = Format("safetensors", safetensors_file.read)
HDF5 = Format("hdf5", hdf5_subprocess.read)

_BY_MAGIC = {
    parquet_footer.MAGIC: PARQUET,
    arrow.FILE_MAGIC: ARROW,
    arrow.STREAM_MAGIC: ARROW,
    npz.MAGIC: NPZ,
    HDF5_MAGIC: HDF5,
}
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
        first_bytes = stream.read(LONGEST_MAGIC)
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
    return SAFETENSORS if safetensors_file.has_header(first_bytes) else None


def mistaken_format(first_bytes: bytes) -> str | None:
    """What is wrong with a file of a format that is often sent by mistake, and what to send instead."""
    if not first_bytes:
        return "it is empty"
    return next((words for magic, words in _NEARLY.items() if first_bytes.startswith(magic)), None)
