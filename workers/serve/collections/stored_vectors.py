"""How vectors are stored: as floats, or as one bit for each number.

Shapes: B rows, E width of the vectors.
"""

from functools import cache

import numpy as np
import pyarrow as pa
import torch

from cmcl.contract.api.endpoint import VectorType
from workers.serve.versions.loading import Float32Array


def column_type(vector_type: VectorType, width: int) -> pa.DataType:
    """Return the type of a column of vectors."""
    if vector_type == "bit":
        return pa.list_(pa.uint8(), -(-width // 8))
    return pa.list_(pa.type_for_alias(vector_type), width)


def is_bits(kind: pa.DataType) -> bool:
    """Whether a column of this type has bits."""
    return bool(kind.value_type == pa.uint8())


def encoded(vectors_BE: Float32Array, kind: pa.DataType) -> np.ndarray:
    """Return vectors as a column of this type has them: floats, or bits, eight to a byte (B × ⌈E / 8⌉)."""
    if is_bits(kind):
        return np.packbits(signs(vectors_BE), axis=1)
    return vectors_BE.astype(kind.value_type.to_pandas_dtype())


def signs(vectors_BE: Float32Array) -> np.ndarray:
    """Return which numbers of the vectors are positive after a rotation (B × E, bool).

    The share of bits in which two vectors differ is their angle / π, expected over rotations (Charikar, STOC 2002).
    Without one, axes along which items hardly differ would count as much as the others.
    """
    positive_BE: np.ndarray = vectors_BE @ _rotation(vectors_BE.shape[1]) > 0
    return positive_BE


@cache
def _rotation(width: int) -> Float32Array:
    """An orthonormal matrix (E × E), the same in every process. Cosine transforms need no seed, but their errors are as
    much as 15 % off those of a random one, which are predicted (workers/nullspace/compression.py)."""
    random_EE = torch.randn(
        width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    made: Float32Array = torch.linalg.qr(random_EE).Q.float().numpy()
    return made
