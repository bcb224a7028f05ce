"""A tar archive that is made while it is sent: memory is that of its largest file."""

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from workers.serve.versions.loading import Float32Array

_PIECE = 1 << 20
_LENGTH_BYTES = 8
# Alignment of a safetensors header, and so of the numbers behind it.
_ALIGNED = 8


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export. `pieces` have `size` bytes together, and are read once."""

    name: str
    size: int
    pieces: Iterable[bytes | memoryview]

    @classmethod
    def of(cls, name: str, content: bytes | str) -> "ExportedFile":
        """A file whose content is in memory; texts are UTF-8."""
        data = content.encode() if isinstance(content, str) else content
        return cls(name, len(data), [data])

    @classmethod
    def of_json(cls, name: str, content: object) -> "ExportedFile":
        """A file of indented JSON."""
        return cls.of(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def of_tensors(cls, name: str, tensors: Mapping[str, Float32Array]) -> "ExportedFile":
        """A safetensors file, without a copy of the tensors that are contiguous."""
        arrays = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
        header, end = {}, 0
        for key, array in arrays.items():
            begin, end = end, end + array.nbytes
            header[key] = {
                "dtype": "F32",
                "shape": list(array.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNED)
        start = len(text).to_bytes(_LENGTH_BYTES, "little") + text
        return cls(name, len(start) + end, _pieces(start, arrays.values()))


def write_files(files: Iterable[ExportedFile], folder: Path) -> None:
    """Write the files into a folder. Raises OSError, FileExistsError for one that is there."""
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as opened:
            opened.writelines(file.pieces)


def _pieces(start: bytes, arrays: Iterable[Float32Array]) -> Iterator[bytes | memoryview]:
    yield start
    for array in arrays:
        data = array.reshape(-1).view(np.uint8).data
        for begin in range(0, len(data), _PIECE):
            yield data[begin : begin + _PIECE]


def tar(files: Iterable[ExportedFile], changed: datetime) -> Iterator[bytes | memoryview]:
    """Yield an uncompressed tar archive. `changed`: time of every file, so that equal exports have equal bytes."""
    for file in files:
        entry = tarfile.TarInfo(file.name)
        entry.size, entry.mtime = file.size, int(changed.timestamp())
        yield entry.tobuf(tarfile.PAX_FORMAT)
        yield from file.pieces
        yield b"\0" * (-file.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
