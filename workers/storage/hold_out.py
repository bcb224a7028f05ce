"""Which rows of a dataset are kept aside for measuring: a function of the row alone.

A row is held out where the digest of its `feature_a`, read as a number between 0 and 1, falls below
the share. So the choice is the same in whatever order and in whichever shard or format rows come,
it stays when rows are added, and a larger share holds out a superset.

The digest is of the feature and not of the id: rows with an equal `feature_a` (one picture with five
captions, an exact copy under another id) fall on the same side, since training on four captions of a
picture and measuring on the fifth would flatter every method. Where `feature_a` has few values, a
share of the values can be far from that share of the rows.
"""

import hashlib

import numpy as np
import pyarrow as pa

from workers.storage.formats.columns import float32_rows

_PERSON = b"cmcl-hold-out"


def held_out_rows(feature_a: pa.FixedSizeListArray, share: float) -> np.ndarray:
    """A bool for each row; `share` is between 0 and 1."""
    below = int(share * 2**64)
    # Adding zero makes -0.0 and 0.0, which are equal, the same bytes.
    values_BI = np.ascontiguousarray(float32_rows(feature_a) + np.float32(0), dtype="<f4")
    return np.fromiter((_number(row_I) < below for row_I in values_BI), bool, len(values_BI))


def _number(row_I: np.ndarray) -> int:
    digest = hashlib.blake2b(row_I.data, digest_size=8, person=_PERSON)
    return int.from_bytes(digest.digest(), "big")
