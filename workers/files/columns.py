"""The internal form of rows, the conversion of columns to it, and the errors that any format can have.

Internal: `id` and `label` are text, `feature_a` and `feature_b` fixed-size lists of float16 or
float32. float64 becomes float32. A number beyond float32's range becomes infinity, which the check of
values rejects.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_digest

from cmcl.contract.errors import InvalidDataset, StorageUnavailable

FEATURES = ("feature_a", "feature_b")
# With two sides 1,000 wide: 14 MiB of features, and ten times that while Parquet is decoded.
ROWS_AT_ONCE = 2048
# Ids and labels are for people and for joining, not for documents.
LONGEST_TEXT = 4096
HALF_OR_SINGLE = (pa.float16(), pa.float32())
_FLOATS = (*HALF_OR_SINGLE, pa.float64())
# A file that expands beyond both of these is a decompression bomb: encoders' outputs hardly compress,
# and one picture with a few captions gives a factor of a few.
LARGEST_EXPANSION = 64
HARMLESS_BYTES = 1 << 30
# Errors of the machine, not of the file.
_MACHINE_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOENT,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}


@dataclass(frozen=True)
class Side:
    """One side of a pair: its column, its modality, and the width that the model declares."""

    column: str
    modality: str
    width: int


@dataclass(frozen=True)
class UserFile:
    """A local copy of a user's file.

    `uri`: as the user named it. `sha256`: of the file. `sides`: of feature_a, then of feature_b.
    `left_out`: reasons by row, to which readers add; None: a row that cannot be converted is an error.
    """

    path: Path
    uri: str
    sha256: str
    sides: tuple[Side, Side]
    left_out: dict[int, str] | None = None

    def wrong(self, what: str) -> InvalidDataset:
        """An InvalidDataset error that names this file."""
        return InvalidDataset(f"{self.uri}: {what}")

    def leave_out(self, row: int, reason: str) -> None:
        """Note that a row cannot be converted. Raises InvalidDataset unless rows may be left out."""
        if self.left_out is None:
            raise self.wrong(reason)
        self.left_out.setdefault(row, reason)

    def check_width(self, side: Side, width: int, name: str) -> None:
        """Raises InvalidDataset if the model declares another width for that side."""
        if width != side.width:
            raise self.wrong(
                f"{name} has width {width}, the model declares {side.width} for {side.modality}"
            )


def check_expansion(unfolded: int, path: Path, uri: str) -> None:
    """Raises InvalidDataset if the declared size of a file is implausible for its packed size."""
    packed = path.stat().st_size
    if unfolded > max(LARGEST_EXPANSION * packed, HARMLESS_BYTES):
        raise InvalidDataset(
            f"{uri}: its {packed} bytes claim to unfold to {unfolded}; "
            f"more than {LARGEST_EXPANSION} times its size is not read"
        )


@contextmanager
def reading(uri: str, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn a library's errors about contents into InvalidDataset, and disk errors into
    StorageUnavailable."""
    expected: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except expected as error:
        # Libraries raise OSError for damaged contents too: without a number, or with EINVAL for an
        # offset before the start of the file.
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            raise StorageUnavailable(f"{uri}: its local copy: {error.strerror}") from error
        raise InvalidDataset(f"{uri}: it cannot be read as {kind}: {error}") from error


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of that type is text, plain or dictionary-encoded."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def is_convertible(type_: pa.DataType) -> bool:
    """Whether features of that type can be converted to the internal form."""
    is_list = (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
    )
    return bool(is_list) and type_.value_type in _FLOATS


def plain_text(texts: pa.Array, column: str, uri: str) -> pa.StringArray:
    """Decode a text column. Raises InvalidDataset if a text is too long."""
    values = texts.dictionary if isinstance(texts, pa.DictionaryArray) else texts
    longest = pc.max(pc.binary_length(values)).as_py() or 0
    if longest > LONGEST_TEXT:
        raise InvalidDataset(
            f"{uri}: column {column!r} has a text of {longest} bytes; "
            f"at most {LONGEST_TEXT} are permitted"
        )
    return texts.cast(pa.string())


def internal_batch(batch: pa.RecordBatch, first_row: int, file: UserFile) -> pa.RecordBatch:
    """Convert a batch of the user's columns to the internal form. Raises InvalidDataset."""
    columns = {"id": plain_text(batch.column("id"), "id", file.uri)}
    if "label" in batch.schema.names:
        columns["label"] = plain_text(batch.column("label"), "label", file.uri)
    for side in file.sides:
        columns[side.column] = _features(batch.column(side.column), side, first_row, file)
    return pa.record_batch(columns)


def float32_rows(features: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Features in the internal form as (rows, width) of float32."""
    if isinstance(features, pa.ChunkedArray):
        features = features.combine_chunks()
    values = features.flatten()
    if values.type == pa.float16():
        # Arrow returns float16 as NumPy's type; the cast is one pass.
        flat = values.to_numpy(zero_copy_only=False).astype(np.float32)
    else:
        flat = pc.cast(values, pa.float32()).to_numpy(zero_copy_only=False)
    values_BI: np.ndarray = flat.reshape(len(features), features.type.list_size)
    return values_BI


def are_finite_halves(features: pa.Array) -> bool:
    """Whether these are float16 rows of finite numbers, none of them all zeros: any such row has a usable
    length. At a fifth of the time of turning them into float32."""
    values = features.flatten()
    if values.type != pa.float16() or not len(values):
        return False
    bits_BI = values.to_numpy(zero_copy_only=False).view(np.uint16).reshape(len(features), -1)
    # Without the sign, halves are ordered as whole numbers; infinity and NaN are the largest.
    largest_B = (bits_BI & 0x7FFF).max(axis=1)
    return bool(np.all((largest_B > 0) & (largest_B < 0x7C00)))


def feature_list(values_BI: np.ndarray) -> pa.FixedSizeListArray:
    """Rows of numbers as features: float16 and float32 unchanged, float64 as float32."""
    native = values_BI.dtype.newbyteorder("=")
    kind = np.float32 if native == np.float64 else native
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(values_BI, dtype=kind).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values_BI.shape[1])


def check_columns(schema: pa.Schema, file: UserFile) -> None:
    """Check that a table's columns can be converted. Raises InvalidDataset."""
    check_names(schema, file.uri)
    for side in file.sides:
        type_ = schema.field(side.column).type
        if not is_convertible(type_):
            raise file.wrong(
                f"column {side.column!r} must be a list of float16, float32 or float64, is {type_}"
            )
        if pa.types.is_fixed_size_list(type_):
            file.check_width(side, type_.list_size, f"column {side.column!r}")


def check_names(schema: pa.Schema, uri: str) -> None:
    """Check that our columns exist once, and that ids and labels are text. Raises InvalidDataset."""
    for name in ("id", *FEATURES):
        if name not in schema.names:
            raise InvalidDataset(f"{uri}: column {name!r} is missing; found {schema.names}")
    for name in known_columns(schema):
        if schema.names.count(name) > 1:
            raise InvalidDataset(f"{uri}: column {name!r} is there more than once")
    for name in ("id", "label"):
        if name in schema.names and not is_text(schema.field(name).type):
            raise InvalidDataset(
                f"{uri}: column {name!r} must be text, is {schema.field(name).type}"
            )


def known_columns(schema: pa.Schema) -> list[str]:
    """The columns of a table that belong to the internal form."""
    return [name for name in ("id", "label", *FEATURES) if name in schema.names]


def rows_with_gaps(lists: pa.Array) -> np.ndarray:
    """Rows of a column of features (bool) that are missing, or miss a number."""
    gaps_B: np.ndarray = lists.is_null().to_numpy(zero_copy_only=False)
    if lists.flatten().null_count:
        missing = lists.flatten().is_null().to_numpy(zero_copy_only=False)
        rows = pc.list_parent_indices(lists).to_numpy()
        gaps_B[rows[missing]] = True
    return gaps_B


def zeros_at(lists: pa.Array, wrong_B: np.ndarray, width: int) -> pa.Array:
    """The column with rows of zeros, `width` wide, in place of the wrong ones."""
    kind = lists.type.value_type
    if pa.types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.list_(kind))
    zeros = pa.array([np.zeros(width, kind.to_pandas_dtype())], lists.type)
    kept = np.where(wrong_B, len(lists), np.arange(len(lists)))
    return pa.concat_arrays([lists, zeros]).take(pa.array(kept)).cast(pa.list_(kind, width))


def _features(lists: pa.Array, side: Side, first_row: int, file: UserFile) -> pa.Array:
    wrong_B = np.zeros(len(lists), bool)
    if lists.null_count or lists.flatten().null_count:
        wrong_B = rows_with_gaps(lists)
        for row in np.flatnonzero(wrong_B):
            file.leave_out(first_row + int(row), f"column {side.column!r} has missing values")
    if not pa.types.is_fixed_size_list(lists.type):
        lengths_B = pc.fill_null(pc.list_value_length(lists), side.width).to_numpy()
        for row in np.flatnonzero(lengths_B != side.width):
            wrong_B[row] = True
            file.leave_out(
                first_row + int(row),
                f"column {side.column!r} has {lengths_B[row]} numbers in row {first_row + row}, "
                f"the model declares {side.width} for {side.modality}",
            )
    if wrong_B.any():
        lists = zeros_at(lists, wrong_B, side.width)
    values = lists.flatten()
    if values.type == pa.float64():
        values = values.cast(pa.float32())
    return pa.FixedSizeListArray.from_arrays(values, side.width)


# Rows are scaled to unit length in float32, in which squares underflow and overflow: outside of these
# lengths a row would silently lose its direction. The query endpoint has the same bounds.
_SHORTEST = 1e-12
_LONGEST = 1e18
# A little inside of their squares, for rounding.
_SHORTEST_SQUARE, _LONGEST_SQUARE = 1.01e-24, 0.99e36
# Digests of ids are kept to find duplicates: 0.8 GB for this many rows, and half as much to sort them.
MOST_ROWS = 50_000_000
DIGEST_BYTES = 16
NO_ID = bytes(DIGEST_BYTES)


def check_rows(batches: Iterable[pa.RecordBatch], file: UserFile) -> bytearray:
    """Check all rows of a file, in the internal form, and note those that cannot be used in `left_out`.

    Returns 16 bytes for the id of each row; zeros where there is none. Raises InvalidDataset for a file without rows or
    with too many; unless rows may be left out, also for the first one that cannot be used.
    """
    digests, first_row = bytearray(), 0
    for batch in batches:
        if first_row + batch.num_rows > MOST_ROWS:
            raise file.wrong(f"a dataset has at most {MOST_ROWS} rows; split it in two")
        ids = batch.column("id").to_pylist()
        digests += b"".join(NO_ID if id_ is None else id_digest(id_) for id_ in ids)
        for row, reason in _unusable(batch, first_row):
            file.leave_out(row, reason)
        first_row += batch.num_rows
    if not first_row:
        raise file.wrong("it has no rows, at least 1 is needed")
    for again, first in repeated_ids(np.frombuffer(digests, np.uint64)).tolist():
        rule = "ids are unique over all shards of a dataset"
        file.leave_out(again, f"row {again} repeats the id of row {first} of {file.uri}; {rule}")
    return digests


def _unusable(batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[int, str]]:
    """Yield rows that cannot be used, each with one or more reasons."""
    for at in np.flatnonzero(batch.column("id").is_null()).tolist():
        yield first_row + at, f"row {first_row + at} has no id"
    if "label" in batch.schema.names:
        for at in np.flatnonzero(batch.column("label").is_null()).tolist():
            reason = f"row {first_row + at} has no label; fill the column 'label', or leave it out"
            yield first_row + at, reason
    for column in FEATURES:
        features = batch.column(column)
        if are_finite_halves(features):
            continue
        for at, found, permitted in wrong_values(float32_rows(features)):
            yield first_row + at, f"column {column!r} {found} in row {first_row + at}{permitted}"


def repeated_ids(digests_2N: np.ndarray) -> np.ndarray:
    """Each row whose id an earlier row has, and the first row with that id (K × 2), in the order of rows.

    `digests_2N`: two numbers (uint64) for each row; zeros: a row without an id, which repeats none.
    """
    id_N2 = digests_2N.reshape(-1, 2)
    # Nearly always all ids differ. Sorting their first halves shows it in a fraction of the time.
    half_N = np.sort(id_N2[:, 0])
    alike = np.unique(half_N[1:][half_N[1:] == half_N[:-1]])
    if not len(alike):
        return np.empty((0, 2), np.int64)
    place_N = np.searchsorted(alike, id_N2[:, 0]).clip(max=len(alike) - 1)
    row_C = np.flatnonzero((alike[place_N] == id_N2[:, 0]) & id_N2.any(axis=1))
    # A stable sort: of equal ids the first row is first.
    row_C = row_C[np.lexsort((id_N2[row_C, 1], id_N2[row_C, 0]))]
    is_new_C = np.ones(len(row_C), bool)
    is_new_C[1:] = np.any(np.diff(id_N2[row_C], axis=0), axis=1)
    first_C = row_C[is_new_C][np.cumsum(is_new_C) - 1]
    found_K2 = np.stack([row_C[~is_new_C], first_C[~is_new_C]], axis=1)
    assert (found_K2[:, 1] < found_K2[:, 0]).all(), "a row repeats an earlier one"
    return found_K2[np.argsort(found_K2[:, 0])]


def id_digest(value: str) -> bytes:
    """Sixteen bytes for an id of any length. Not cryptographic: colliding ids harm their own dataset alone."""
    digest: bytes = xxh3_128_digest(value.encode())
    return digest


def wrong_values(values_BI: np.ndarray) -> Iterator[tuple[int, str, str]]:
    """Rows of features (float32) that cannot be used: what each has, and what is permitted."""
    # One pass for rows without a fault: squares of permitted lengths are far inside of float32's range, and a
    # number that is not finite makes its row's sum so.
    square_B = np.einsum("bi,bi->b", values_BI, values_BI)
    if np.all((square_B > _SHORTEST_SQUARE) & (square_B < _LONGEST_SQUARE)):
        return
    finite_B = np.isfinite(values_BI).all(axis=1)
    if not finite_B.all():
        for row in np.flatnonzero(~finite_B):
            yield int(row), "has NaN or infinity", ""
        values_BI = np.where(finite_B[:, None], values_BI, np.float32(1))
    length_B = np.linalg.norm(values_BI.astype(np.float64), axis=1)
    for row in np.flatnonzero((length_B < _SHORTEST) | (length_B > _LONGEST)):
        length = float(length_B[row])
        found = f"has length {length:.3g}" if length else "is all zeros"
        yield int(row), found, f"; permitted are lengths from {_SHORTEST:g} to {_LONGEST:g}"
