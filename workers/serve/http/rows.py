"""From lists of numbers to an array that a head can read, every row checked.

Shapes: B rows, F width of the raw feature.
"""

import numpy as np

from workers.contract.model import ModelSpec
from workers.serve.http.errors import InvalidRequest
from workers.serve.versions.loading import Float32Array

# Rows are brought to unit length in float32, where squares underflow and overflow: outside of
# these lengths a row would silently lose its direction.
_SHORTEST = 1e-12
_LONGEST = 1e18


def check_count(rows: int, most: int) -> None:
    """Raises InvalidRequest if there are none or too many."""
    if not 1 <= rows <= most:
        raise InvalidRequest(f"input has {rows} rows; permitted are 1 to {most}", param="input")


def to_array(rows: list[list[float]], modality: str, spec: ModelSpec) -> Float32Array:
    """The rows as B × F. Raises InvalidRequest that names the first row that does not fit."""
    width = spec.modalities.get(modality)
    if width is None:
        known = ", ".join(sorted(spec.modalities))
        raise InvalidRequest(
            f"modality is {modality[:60]!r}; this model knows {known}",
            param="modality",
            code="unknown_modality",
        )
    for index, row in enumerate(rows):
        if len(row) != width:
            raise InvalidRequest(
                f"input row {index} has {len(row)} numbers; a feature of modality {modality!r} "
                f"has {width}",
                param="input",
                code="wrong_width",
            )
    return _checked(np.array(rows, dtype=np.float64))


def _checked(rows_BF: np.ndarray) -> Float32Array:
    with np.errstate(over="ignore", under="ignore"):
        lengths_B = np.sqrt(np.einsum("bf,bf->b", rows_BF, rows_BF))
    wrong = np.flatnonzero(~((lengths_B >= _SHORTEST) & (lengths_B <= _LONGEST)))
    if len(wrong):
        index = int(wrong[0])
        length = float(np.hypot.reduce(rows_BF[index]))  # neither underflows nor overflows
        found = f"of length {length:.3g}" if length else "all zeros"
        raise InvalidRequest(
            f"input row {index} is {found}; permitted are lengths from {_SHORTEST:g} to "
            f"{_LONGEST:g}, because only the direction of a feature counts",
            param="input",
        )
    return rows_BF.astype(np.float32)
