"""Formats of named arrays (npz, safetensors, HDF5): which arrays are the columns, read in batches.

Arrays: `feature_a` and `feature_b`, or the names of the pair's two modalities, of shape (rows,
width); optional `id` and `label` of shape (rows,), text or whole numbers. Without `id`, ids are
made from the file's digest and the row's number: unique, and stable when the file is read again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from workers.files.formats.columns import LONGEST_TEXT, ROWS_AT_ONCE, feature_list
from workers.files.formats.user_file import Side, UserFile, check_expansion

BYTES_AT_ONCE = 16 << 20
# In a message about names that are missing.
_MOST_NAMES = 20


@dataclass(frozen=True)
class NamedArray:
    """An array in a file. `read(start, stop)` returns rows; calls must be sequential.

    `stored_as`: the format's own name for the element type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stored_as: str
    read: Callable[[int, int], np.ndarray]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


def read_arrays(
    arrays: Mapping[str, NamedArray], file: UserFile, present: Iterable[str]
) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. `present`: names of all arrays of the file. Raises InvalidDataset."""
    found = ", ".join(sorted(islice(present, _MOST_NAMES))) or "no arrays"
    chosen = {side.column: _features_of(arrays, side, file, found) for side in file.sides}
    chosen |= {name: _text_of(arrays, name, file) for name in ("id", "label") if name in arrays}
    rows = _common_rows(chosen, file)
    row_bytes = sum(array.row_bytes for array in chosen.values())
    check_expansion(rows * row_bytes, file.path, file.uri)
    step = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // max(1, row_bytes)))
    for start in range(0, rows, step):
        yield _batch(chosen, start, min(rows, start + step), file)


def made_ids(start: int, stop: int, file: UserFile) -> pa.Array:
    """Ids for rows of a file without ids."""
    return pa.array([f"{file.sha256[:16]}-{row}" for row in range(start, stop)], pa.string())


def check_floats(dtype: np.dtype, stored_as: str, name: str, file: UserFile) -> None:
    """Raises InvalidDataset unless the elements are floats of two, four or eight bytes."""
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise file.wrong(
            f"array {name!r} must be of float16, bfloat16, float32 or float64, is {stored_as}"
        )


def _features_of(
    arrays: Mapping[str, NamedArray], side: Side, file: UserFile, found: str
) -> NamedArray:
    names = [name for name in (side.column, side.modality) if name in arrays]
    if len(names) != 1:
        raise file.wrong(
            f"one array must be called {side.column!r} or {side.modality!r}; the file has: {found}"
        )
    array = arrays[names[0]]
    check_floats(array.dtype, array.stored_as, names[0], file)
    if len(array.shape) != 2:
        raise file.wrong(f"array {names[0]!r} must be (rows, width), has shape {array.shape}")
    file.check_width(side, array.shape[1], f"array {names[0]!r}")
    return array


def _text_of(arrays: Mapping[str, NamedArray], name: str, file: UserFile) -> NamedArray:
    array = arrays[name]
    if len(array.shape) != 1:
        raise file.wrong(f"array {name!r} must be (rows,), has shape {array.shape}")
    if array.dtype.kind not in "USiuO":
        raise file.wrong(f"array {name!r} must be text or whole numbers, is {array.stored_as}")
    if array.dtype.itemsize > 4 * LONGEST_TEXT:
        raise file.wrong(
            f"array {name!r} has texts of {array.dtype.itemsize} bytes; "
            f"at most {LONGEST_TEXT} are permitted"
        )
    return array


def _common_rows(chosen: Mapping[str, NamedArray], file: UserFile) -> int:
    counts = {name: array.shape[0] for name, array in chosen.items()}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{name} has {rows}" for name, rows in counts.items())
        raise file.wrong(f"its arrays have different numbers of rows: {listed}")
    return next(iter(counts.values()))


def _batch(
    chosen: Mapping[str, NamedArray], start: int, stop: int, file: UserFile
) -> pa.RecordBatch:
    columns = {"id": made_ids(start, stop, file)} if "id" not in chosen else {}
    for name in ("id", "label"):
        if name in chosen:
            columns[name] = _texts(chosen[name].read(start, stop), name, start, file)
    for side in file.sides:
        columns[side.column] = feature_list(chosen[side.column].read(start, stop))
    return pa.record_batch(columns)


def _texts(values_B: np.ndarray, name: str, first_row: int, file: UserFile) -> pa.Array:
    """Text unchanged, bytes decoded as UTF-8, numbers as decimals."""
    texts: list[str] = []
    for offset, value in enumerate(values_B.tolist()):
        try:
            texts.append(value.decode() if isinstance(value, bytes) else str(value))
        except UnicodeDecodeError as error:
            row = first_row + offset
            raise file.wrong(f"array {name!r} is no UTF-8 text in row {row}") from error
    return pa.array(texts, pa.string())
