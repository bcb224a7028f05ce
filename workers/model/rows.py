"""Paired rows: raw, as heads read them, or in eigen-coordinates; the place says which.

Shapes: N rows, I and J widths of the two sides.
"""

from dataclasses import dataclass

import torch
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
        """Which rows of `everywhere` share an item with each of these (bool)."""
        return positives(
            self.first_keys_N,
            self.second_keys_N,
            everywhere.first_keys_N,
            everywhere.second_keys_N,
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """To a card from pinned memory, so that nobody waits for the copy."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
