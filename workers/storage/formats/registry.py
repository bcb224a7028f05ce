"""Recognise the format of a file by its first bytes; names and content types are not reliable."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from cmcl.contract.dataset import FileFormat
from workers.storage.formats import (
    arrow,
    hdf5_subprocess,
    npz,
    parquet,
    parquet_footer,
    safetensors_file,
)
from workers.storage.formats.user_file import UserFile

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_LONGEST_MAGIC = 16


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


def format_of(file: UserFile) -> Format:
    """Return the format of a file. Raises InvalidDataset if it is not supported."""
    with file.path.open("rb") as stream:
        first_bytes = stream.read(_LONGEST_MAGIC)
    for magic, format_ in _BY_MAGIC.items():
        if first_bytes.startswith(magic):
            return format_
    if safetensors_file.has_header(first_bytes):
        return SAFETENSORS
    for magic, words in _NEARLY.items():
        if first_bytes.startswith(magic):
            raise file.wrong(words)
    if not first_bytes:
        raise file.wrong("it is empty")
    raise file.wrong(
        "by its first bytes it is neither Parquet nor Arrow IPC, npz, safetensors or HDF5"
    )
