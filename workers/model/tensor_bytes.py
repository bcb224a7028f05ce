"""Tensors out of safetensors bytes, beside an event loop that must not stand still.

`safetensors.torch.load` copies while it holds Python's lock: half a second for 1 GiB, in which no
thread of the process answers anything. numpy copies without holding it.
"""

import json
import math
from typing import Any

import numpy as np
import safetensors.torch
import torch
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
