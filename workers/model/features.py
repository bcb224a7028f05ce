"""From raw encoder outputs to what a head reads.

Shapes: B rows, F width of the raw feature, I = F + 1 width of what a head reads.
"""

import numpy as np
import torch
import xxhash
from torch import Tensor

from workers.nullspace.conditioning import Conditioning


def head_width(feature_width: int) -> int:
    """Width of what a head reads: the feature and the constant 1."""
    return feature_width + 1


def unit_rows(raw_BF: Tensor) -> Tensor:
    """Unit length, float32: norms of encoders differ by a hundredfold and mean nothing here.

    Rows are never all zeros (intake and the query endpoint refuse them).
    """
    return torch.nn.functional.normalize(raw_BF.float(), dim=1)


def with_constant(feature_BF: Tensor) -> Tensor:
    """A constant 1 appended: the bias is a column like any other, and protected like it."""
    return torch.cat([feature_BF, feature_BF.new_ones(len(feature_BF), 1)], dim=1)


def prepare(raw_BF: Tensor, conditioning: Conditioning | None = None) -> Tensor:
    """What a head reads: unit length, conditioned if the modality is, then the constant 1."""
    unit_BF = unit_rows(raw_BF)
    return with_constant(conditioning(unit_BF) if conditioning else unit_BF)


def content_keys(raw_BF: np.ndarray) -> Tensor:
    """An int64 for each row, equal where the whole row is equal as float32: texts and labels repeat."""
    rows = np.ascontiguousarray(raw_BF, dtype=np.float32)
    digests = (xxhash.xxh3_64_intdigest(row) for row in rows)
    keys = np.fromiter(digests, dtype=np.uint64, count=len(rows))
    return torch.from_numpy(keys.view(np.int64))
