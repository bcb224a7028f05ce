"""Paired rows of a dataset: raw, as heads read them, or in eigen-coordinates.

Shapes: N rows, I and J widths of the two sides.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from workers.model.loss import positives


@dataclass(frozen=True)
class PairedRows:
    """Features of both sides and the content keys (int64) of either."""

    first_NI: Tensor
    second_NJ: Tensor
    first_keys_N: Tensor
    second_keys_N: Tensor

    def __len__(self) -> int:
        return len(self.first_NI)

    def at(self, index_B: Tensor | slice) -> "PairedRows":
        """Some of the rows."""
        return PairedRows(
            self.first_NI[index_B],
            self.second_NJ[index_B],
            self.first_keys_N[index_B],
            self.second_keys_N[index_B],
        )

    def to(self, device: torch.device) -> "PairedRows":
        """On another device."""
        parts = (self.first_NI, self.second_NJ, self.first_keys_N, self.second_keys_N)
        return PairedRows(*(_moved(part, device) for part in parts))

    def positives_in(self, everywhere: "PairedRows") -> Tensor:
        """Which rows of `everywhere` share an item with each of these (bool, N × B)."""
        return positives(
            self.first_keys_N,
            self.second_keys_N,
            everywhere.first_keys_N,
            everywhere.second_keys_N,
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """To a GPU through pinned memory, so that the copy is asynchronous."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def content_keys(raw_NI: np.ndarray) -> np.ndarray:
    """An int64 per row, equal if the rows are equal as float32: captions and labels repeat."""
    rows = np.ascontiguousarray(raw_NI, dtype=np.float32)
    digests = (xxhash.xxh3_64_intdigest(row) for row in rows)
    keys: np.ndarray = np.fromiter(digests, dtype=np.uint64, count=len(rows)).view(np.int64)
    return keys
