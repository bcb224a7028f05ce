"""From raw encoder outputs to what a head reads.

Shapes: B rows, F width of the raw feature, I = F + 1 width of what a head reads.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def head_width(feature_width: int) -> int:
    """Width of what a head reads: the feature and the constant 1."""
    return feature_width + 1


def prepare(raw_BF: Tensor) -> Tensor:
    """Unit length, then a constant 1: the bias is a column like any other, and protected like it.

    Norms of encoders differ by a hundredfold and mean nothing here; rows are never all zeros
    (intake and the query endpoint refuse them).
    """
    unit_BF = torch.nn.functional.normalize(raw_BF.float(), dim=1)
    return torch.cat([unit_BF, unit_BF.new_ones(len(unit_BF), 1)], dim=1)


def content_keys(raw_BF: np.ndarray) -> Tensor:
    """An int64 for each row, equal where the whole row is equal: texts and labels repeat."""
    rows = np.ascontiguousarray(raw_BF)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.int64).copy())
