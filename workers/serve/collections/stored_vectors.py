"""How vectors are stored: as floats, or as one bit for each number.

Shapes: B rows, E width of the vectors.
"""

from functools import cache

import numpy as np
import pyarrow as pa

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
    """The discrete cosine transform IV (E × E), which is orthonormal and needs no random numbers."""
    halves_E = np.arange(width) + 0.5
    cosines_EE = np.cos(np.pi / width * np.outer(halves_E, halves_E))
    made: Float32Array = (np.sqrt(2 / width) * cosines_EE).astype(np.float32)
    return made
