"""Tensors out of safetensors bytes, beside an event loop that must not stand still.

`safetensors.torch.load` copies while it holds Python's lock: half a second for 1 GiB, in which no
thread of the process answers anything. numpy copies without holding it.
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
    """The same as `safetensors.torch.load`. Raises SafetensorError."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        header: dict[str, Any] = json.loads(data[_LENGTH_BYTES:start])
        header.pop("__metadata__", None)
        return {name: _tensor(data, start, entry) for name, entry in header.items()}
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        # Damaged, or not float32 alone: the library reads it, or says what is wrong with it.
        return safetensors.torch.load(data)


def _tensor(data: bytes, start: int, entry: dict[str, Any]) -> Tensor:
    """Raises ValueError and the like for what is not a float32 tensor inside of the data."""
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
    """The float32 tensors of a safetensors file of `size` bytes, each as soon as it is complete.

    Memory is that of the tensors and one chunk: the file is never whole in memory beside them. Raises
    SafetensorError.
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
    """Name and shape of each tensor, in the order of the file. Raises ValueError and the like."""
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
    """Bytes of a file that comes in chunks."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def read(self, count: int) -> bytes:
        """The next bytes. Raises ValueError where the file ends before."""
        data = bytearray(count)
        self.fill(memoryview(data))
        return bytes(data)

    def fill(self, target: memoryview) -> None:
        """The same, into `target`."""
        while target:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    raise ValueError("it ends too early")
            piece = self._rest[: len(target)]
            target[: len(piece)] = piece
            target, self._rest = target[len(piece) :], self._rest[len(piece) :]
