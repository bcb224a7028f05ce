"""Checks of the rows of shards: ids, labels and features. Reasons are in the user's terms."""

from bisect import bisect_right
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
from xxhash import xxh3_128_digest

from cmcl.contract.errors import InvalidDataset
from workers.files.formats import columns
from workers.files.formats.columns import FEATURES
from workers.files.formats.parquet import ColumnReader, open_parquet

# Rows are scaled to unit length in float32, in which squares underflow and overflow: outside of these
# lengths a row would silently lose its direction. The query endpoint has the same bounds.
_SHORTEST = 1e-12
_LONGEST = 1e18
# A little inside of their squares, for rounding.
_SHORTEST_SQUARE, _LONGEST_SQUARE = 1.01e-24, 0.99e36
# Digests of ids are kept to find duplicates: for this many rows 0.8 GB, and as much again to sort them.
MOST_ROWS = 50_000_000
_DIGEST_BYTES = 16
_TEXTS = ("id", "label")
# Of one side: 512 KiB of float16, which stay in the cache between decoding and checking.
_VALUES_AT_ONCE = 1 << 18


class ShardChecker:
    """Checks the contents of shards, one after another, in constant memory for features.

    `widths`: what the model declares for `feature_a` and `feature_b`.
    """

    def __init__(self, widths: tuple[int, int]) -> None:
        self._widths = dict(zip(FEATURES, widths, strict=True))
        # Of each shard: the number of its first row over all shards, and its name.
        self._shards: list[tuple[int, str]] = []
        self.digests = bytearray()
        """Of the ids of all rows in their order, sixteen bytes each; zeros where there is no id."""

    def check(self, path: Path, uri: str) -> None:
        """Check a shard. Raises InvalidDataset that names file, column and row."""
        for _, reason in self.wrong_rows(path, uri):
            raise InvalidDataset(f"{uri}: {reason}")

    def wrong_rows(self, path: Path, uri: str) -> Iterator[tuple[int, str]]:
        """Rows that cannot be used, and why: a row may have several reasons. Repeated ids come last.

        Raises InvalidDataset if the file cannot be used at all.
        """
        file = open_parquet(path, uri)
        schema = file.schema_arrow
        self._check_columns(schema, uri)
        self._shards.append((len(self.digests) // _DIGEST_BYTES, uri))
        texts = ColumnReader(file, path, uri, [name for name in _TEXTS if name in schema.names])
        rows_at_once = _rows_at_once(schema)
        # A column at a time: batches stay in the cache.
        features = {
            column: ColumnReader(file, path, uri, [column], rows_at_once) for column in FEATURES
        }
        first_row = 0
        for group in range(file.num_row_groups):
            yield from self._wrong_texts(texts, group, first_row, uri)
            for column, reader in features.items():
                yield from _wrong_features(reader, group, column, first_row)
            first_row += file.metadata.row_group(group).num_rows
        yield from self._repeated_ids()

    def _wrong_texts(
        self, reader: ColumnReader, group: int, first_row: int, uri: str
    ) -> Iterator[tuple[int, str]]:
        for batch in reader.batches(group):
            yield from self._wrong_ids(batch.column("id"), first_row, uri)
            if "label" in batch.schema.names:
                yield from _wrong_labels(batch.column("label"), first_row, uri)
            first_row += batch.num_rows

    def _check_columns(self, schema: pa.Schema, uri: str) -> None:
        columns.check_names(schema, uri)
        for column, width in self._widths.items():
            _check_feature_type(schema.field(column).type, column, width, uri)

    def _wrong_ids(self, ids: pa.Array, first_row: int, uri: str) -> Iterator[tuple[int, str]]:
        if len(self.digests) // _DIGEST_BYTES + len(ids) > MOST_ROWS:
            raise InvalidDataset(f"{uri}: a dataset has at most {MOST_ROWS} rows; split it in two")
        values = columns.plain_text(ids, "id", uri).to_pylist()
        self.digests += b"".join(_NO_ID if each is None else id_digest(each) for each in values)
        if ids.null_count:
            for row, value in enumerate(values, first_row):
                if value is None:
                    yield row, f"row {row} has no id"

    def _repeated_ids(self) -> Iterator[tuple[int, str]]:
        """Rows of the newest shard whose id an earlier row has."""
        start, _ = self._shards[-1]
        for later, first in repeated_ids(np.frombuffer(self.digests, np.uint64)):
            if later >= start:
                begin, uri = self._shards[bisect_right(self._shards, first, key=itemgetter(0)) - 1]
                row, rule = later - start, "ids are unique over all shards of a dataset"
                yield row, f"row {row} repeats the id of row {first - begin} of {uri}; {rule}"


def repeated_ids(digests_2N: np.ndarray) -> list[tuple[int, int]]:
    """Each row whose id an earlier row has, and the first row with that id, in the order of rows.

    `digests_2N`: two numbers (uint64) for each row; zeros: a row without an id, which repeats none.
    """
    id_N2 = digests_2N.reshape(-1, 2)
    # Nearly always all ids differ. Sorting their first halves shows it in a fraction of the time.
    half_N = np.sort(id_N2[:, 0])
    if not np.any(half_N[1:] == half_N[:-1]):
        return []
    # A stable sort: of equal ids the first row is first.
    order = np.lexsort((id_N2[:, 1], id_N2[:, 0]))
    is_new = np.any(np.diff(id_N2[order], axis=0), axis=1)
    place = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.concatenate([[True], is_new]), place, 0))
    is_later = (first != place) & id_N2[order].any(axis=1)
    return sorted((int(order[at]), int(order[first[at]])) for at in np.flatnonzero(is_later))


_NO_ID = bytes(_DIGEST_BYTES)


def id_digest(value: str) -> bytes:
    """Sixteen bytes for an id of any length. Not cryptographic: colliding ids harm their own dataset alone."""
    digest: bytes = xxh3_128_digest(value.encode())
    return digest


def _check_feature_type(type_: pa.DataType, column: str, width: int, uri: str) -> None:
    if not columns.is_internal(type_):
        raise InvalidDataset(
            f"{uri}: column {column!r} must be a fixed-size list of float16 or float32, is {type_}"
        )
    if type_.list_size != width:
        raise InvalidDataset(
            f"{uri}: column {column!r} has width {type_.list_size}, the model declares {width}"
        )


def _wrong_labels(labels: pa.Array, first_row: int, uri: str) -> Iterator[tuple[int, str]]:
    """Read all labels, so that damage is found now and not by the training job."""
    for row, value in enumerate(columns.plain_text(labels, "label", uri).to_pylist(), first_row):
        if value is None:
            yield row, f"row {row} has no label; fill the column 'label', or leave it out"


def _rows_at_once(schema: pa.Schema) -> int:
    """How many rows of a column to decode at a time."""
    width: int = max(schema.field(column).type.list_size for column in FEATURES)
    return max(1, min(columns.ROWS_AT_ONCE, _VALUES_AT_ONCE // width))


def _wrong_features(
    reader: ColumnReader, group: int, column: str, first_row: int
) -> Iterator[tuple[int, str]]:
    for batch in reader.batches(group):
        yield from _wrong_in_column(batch.column(column), column, first_row)
        first_row += batch.num_rows


def _wrong_in_column(features: pa.Array, column: str, first_row: int) -> Iterator[tuple[int, str]]:
    if features.null_count or features.flatten().null_count:
        wrong_B = columns.rows_with_gaps(features)
        for gap in np.flatnonzero(wrong_B):
            yield first_row + int(gap), f"column {column!r} has missing values"
        features = columns.zeros_at(features, wrong_B, features.type.list_size)
    if columns.are_finite_halves(features):
        return
    for row, found, permitted in wrong_values(columns.float32_rows(features)):
        yield first_row + row, f"column {column!r} {found} in row {first_row + row}{permitted}"


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
