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
        """Some of the rows: by number, slice or mask."""
        return PairedRows(
            self.first_NI[index_B],
            self.second_NJ[index_B],
            self.first_keys_N[index_B],
            self.second_keys_N[index_B],
        )

    def to(self, device: torch.device) -> "PairedRows":
        """Return the rows on another device."""
        parts = (self.first_NI, self.second_NJ, self.first_keys_N, self.second_keys_N)
        return PairedRows(*(_moved(part, device) for part in parts))

    def halves(self) -> "tuple[PairedRows, PairedRows]":
        """The rows in two halves, by a hash of their content.

        Where a row is, on which rank and in which order does not matter, and equal rows are in the
        same half.
        """
        in_second_N = _hash_bit(self.first_keys_N, self.second_keys_N)
        return self.at(~in_second_N), self.at(in_second_N)

    def positives_in(self, everywhere: "PairedRows") -> Tensor:
        """Which rows of `everywhere` share an item with each of these (bool, N × B)."""
        return positives(
            self.first_keys_N,
            self.second_keys_N,
            everywhere.first_keys_N,
            everywhere.second_keys_N,
        )


# Odd, with many set bits: a product by it spreads every bit of a key over the higher ones.
_MULTIPLIER = 0x1E3779B97F4A7C15
_FOLD, _BIT = 29, 40


def _hash_bit(first_keys_N: Tensor, second_keys_N: Tensor) -> Tensor:
    """A bit of each row (bool, N) that depends on both keys, evenly distributed.

    Sums and products of int64 wrap around, on every device alike.
    """
    mixed_N = first_keys_N * 31 + second_keys_N
    # Folding moves high bits down, so that keys that differ only there differ after the product.
    mixed_N = (mixed_N ^ (mixed_N >> _FOLD)) * _MULTIPLIER
    mixed_N = (mixed_N ^ (mixed_N >> _FOLD)) * _MULTIPLIER
    return (mixed_N >> _BIT) & 1 == 1


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a GPU through pinned memory, so that the copy is asynchronous."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def content_keys(raw_NI: np.ndarray) -> np.ndarray:
    """An int64 per row, equal if the rows are equal as float32: captions and labels repeat."""
    rows = np.ascontiguousarray(raw_NI, dtype=np.float32)
    digests = (xxhash.xxh3_64_intdigest(row) for row in rows)
    keys: np.ndarray = np.fromiter(digests, dtype=np.uint64, count=len(rows)).view(np.int64)
    return keys
