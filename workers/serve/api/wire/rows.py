"""From rows of a request to an array that a head can read, every row checked.

Shapes: B rows, F width of the raw feature.
"""

import binascii
from collections.abc import Sequence

import numpy as np
import pybase64
from numpy.typing import NDArray

from workers.serve.errors import InvalidRequest, ModalityNotLearned, WrongRow, shortened
from workers.serve.versions.loading import Float32Array, ServedVersion

# Rows are brought to unit length in float32, where squares underflow and overflow: outside of
# these lengths a row would silently lose its direction.
_SHORTEST = 1e-12
_LONGEST = 1e18
_WRONG_WIDTH = "wrong_width"
# Of the first row, before all are looked at.
_LOOKED_AT = 64

Rows = Sequence[Sequence[float]] | NDArray[np.float64]


def check_count(rows: int, most: int, field: str = "input") -> None:
    """Raises InvalidRequest if there are none or too many."""
    if not 1 <= rows <= most:
        raise InvalidRequest(f"{field} has {rows} rows; permitted are 1 to {most}", param=field)


def width_of(modality: str, version: ServedVersion, field: str = "modality") -> int:
    """Width of the features of a modality that the version has learned. Raises InvalidRequest, ModalityNotLearned."""
    found = version.spec.modalities.get(modality)
    if found is None:
        known = ", ".join(sorted(version.spec.modalities))
        raise InvalidRequest(
            f"modality is {shortened(modality)}; this model has {known}",
            param=field,
            code="unknown_modality",
        )
    if modality in (not_learned := version.not_learned):
        raise ModalityNotLearned(
            f"{version.label} has not learned modality {modality!r}, so its embeddings would be noise; it has learned "
            f"{', '.join(sorted(version.spec.modalities.keys() - not_learned))}. Post a dataset with {modality!r} to model {version.model!r}, or name a "
            "version that has learned it",
            field,
        )
    return found.width


def feature_label(modality: str) -> str:
    """Return how messages refer to a row."""
    return f"a feature of modality {modality!r}"


def from_lists(rows: Sequence[Sequence[float]], what: str, width: int) -> Float32Array:
    """Return the rows as B × F; `what` they are, for messages. Raises WrongRow for the first invalid row."""
    for index, row in enumerate(rows):
        if len(row) != width:
            reason = f"has {len(row)} numbers; {what} has {width}"
            raise WrongRow(index, reason, _WRONG_WIDTH)
    return checked(np.array(rows, dtype=np.float64))


def from_array(rows_BF: NDArray[np.floating], what: str, width: int) -> Float32Array:
    """The same for rows that are an array already."""
    if rows_BF.shape[1] != width:
        raise WrongRow(0, f"has {rows_BF.shape[1]} numbers; {what} has {width}", _WRONG_WIDTH)
    return checked(rows_BF)


def from_bytes(data: bytes, dtype: np.dtype, what: str, width: int, most: int) -> Float32Array:
    """Return rows of raw numbers, little endian, at most so many. Raises InvalidRequest."""
    size = width * dtype.itemsize
    if not data or len(data) % size:
        found = f"the body has {len(data)} bytes of {dtype.name}"
        raise InvalidRequest(f"{found}; {what} has {width} numbers", "input", _WRONG_WIDTH)
    check_count(len(data) // size, most)
    rows_BF = np.frombuffer(data, dtype.newbyteorder("<")).reshape(-1, width)
    return checked(rows_BF.astype(np.float64 if dtype.itemsize == 8 else np.float32))


def from_base64(text: str, index: int, what: str, width: int) -> Float32Array:
    """One row (F) of float32. Raises WrongRow."""
    try:
        data = pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WrongRow(index, f"is not base64: {error}", "invalid_base64") from error
    if len(data) != 4 * width:
        numbers, rest = divmod(len(data), 4)
        found = f"{numbers} numbers" if not rest else f"{len(data)} bytes, no whole float32 numbers"
        raise WrongRow(index, f"has {found}; {what} has {width}", _WRONG_WIDTH)
    row_F: Float32Array = np.frombuffer(data, "<f4").astype(np.float32)
    return row_F


def look_like_tokens(rows: Rows) -> bool:
    """Whether all rows look like tokens, which OpenAI's API takes and some clients send by default."""
    if not len(rows) or not _are_whole(rows[0][:_LOOKED_AT]):
        return False
    return all(map(_are_whole, rows))


def _are_whole(numbers: Sequence[float] | NDArray[np.float64]) -> bool:
    """Whether these are non-negative whole numbers; False where there are none."""
    row_F = np.asarray(numbers, dtype=np.float64)
    return row_F.size > 0 and bool(np.all((row_F >= 0) & (row_F == np.floor(row_F))))


def checked(rows_BF: NDArray[np.floating]) -> Float32Array:
    """Return the rows as float32. Raises WrongRow for the first row without a usable direction."""
    squares_B = np.einsum("bf,bf->b", rows_BF, rows_BF)
    # float32 squares of a short row underflow, those of a long one overflow: check again below.
    if not (squares_B.min() >= _SHORTEST**2 and squares_B.max() <= _LONGEST**2):
        _refuse(rows_BF)
    return rows_BF.astype(np.float32, copy=False)


def _refuse(rows_BF: NDArray[np.floating]) -> None:
    for index, row_F in enumerate(rows_BF.astype(np.float64)):
        length = float(np.hypot.reduce(row_F))  # neither underflows nor overflows
        if not _SHORTEST <= length <= _LONGEST:
            raise WrongRow(
                index,
                f"{_found(row_F, length)}; permitted are lengths from {_SHORTEST:g} to "
                f"{_LONGEST:g}, because only the direction matters",
            )


def _found(row_F: NDArray[np.float64], length: float) -> str:
    odd = np.flatnonzero(~np.isfinite(row_F))
    if len(odd):
        return f"has {row_F[odd[0]]} at position {odd[0]}"
    return f"is of length {length:.3g}" if length else "is all zeros"
