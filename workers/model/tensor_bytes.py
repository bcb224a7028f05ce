"""Read tensors from safetensors bytes without blocking other threads.

`safetensors.torch.load` holds Python's global lock while it copies: half a second for 1 GiB, during
which an event loop in the same process is blocked. numpy releases the lock.
"""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_LENGTH_BYTES = 8
_FLOAT32_BYTES = 4


def load(data: bytes) -> dict[str, Tensor]:
    """Equivalent of `safetensors.torch.load`. Raises SafetensorError."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        header: dict[str, Any] = json.loads(data[_LENGTH_BYTES:start])
        header.pop("__metadata__", None)
        return {name: _tensor(data, start, entry) for name, entry in header.items()}
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        # Damaged, or with other types than float32: let the library read it or raise.
        return safetensors.torch.load(data)


def _tensor(data: bytes, start: int, entry: dict[str, Any]) -> Tensor:
    """Raises ValueError or similar unless the entry is a float32 tensor inside of the data."""
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    count = math.prod(shape)
    if (
        entry["dtype"] != "F32"
        or min(begin, *shape, 0) < 0
        or end - begin != count * _FLOAT32_BYTES
    ):
        raise ValueError
    numbers = np.frombuffer(data, np.float32, count, start + begin)
    return torch.from_numpy(numbers.copy()).reshape(shape)


def stream(chunks: Iterable[bytes], size: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the float32 tensors of a safetensors file of `size` bytes as they arrive.

    Memory is that of the tensors and one chunk, without a copy of the file. Raises SafetensorError.
    """
    reader = _Reader(chunks)
    try:
        for name, shape in _layout(reader, size):
            numbers = np.empty(math.prod(shape), np.float32)
            reader.fill(numbers.view(np.uint8).data)
            yield name, torch.from_numpy(numbers).reshape(shape)
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise SafetensorError(str(error)) from error


def _layout(reader: "_Reader", size: int) -> list[tuple[str, list[int]]]:
    """Name and shape of each tensor, in the order of the file. Raises ValueError or similar."""
    length = int.from_bytes(reader.read(_LENGTH_BYTES), "little")
    if length > size:
        raise ValueError(f"its header has {length} bytes, the file {size}")
    header: dict[str, Any] = json.loads(reader.read(length))
    header.pop("__metadata__", None)
    found, position = [], 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (begin, end), shape = entry["data_offsets"], entry["shape"]
        whole = end - begin == math.prod(shape) * _FLOAT32_BYTES
        if entry["dtype"] != "F32" or begin != position or min(0, *shape) < 0 or not whole:
            raise ValueError(f"tensor {name!r} is not float32, or not where the header says")
        found.append((name, shape))
        position = end
    if position > size:
        raise ValueError(f"its tensors have {position} bytes, the file {size}")
    return found


class _Reader:
    """Reads bytes across the chunks of a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def read(self, count: int) -> bytes:
        """Read `count` bytes. Raises ValueError if the file ends before."""
        data = bytearray(count)
        self.fill(memoryview(data))
        return bytes(data)

    def fill(self, target: memoryview) -> None:
        """Read into `target`. Raises ValueError if the file ends before."""
        while target:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    raise ValueError("the file ends too early")
            piece = self._rest[: len(target)]
            target[: len(piece)] = piece
            target, self._rest = target[len(piece) :], self._rest[len(piece) :]
