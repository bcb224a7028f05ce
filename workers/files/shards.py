"""Feature shards: Parquet with `id`, optional `label`, and `feature_a`, `feature_b` as fixed-size lists.

Reads, writes and checks them. Errors in rows are reported in the user's terms. `formats` converts other
files into this form.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128_digest

from cmcl.contract.dataset import Shard, ShardRef, SourceFile
from cmcl.contract.errors import InvalidDataset, ObjectNotFound, StorageUnavailable
from cmcl.storage.uris import locate, locate_allowed
from cmcl.storage.versions import Digests, digests_of_file
from workers.files import columns
from workers.files.parquet import BUFFERING, ColumnReader, open_parquet

FEATURES = columns.FEATURES
# Values of both sides: 16 MiB as float32, and a few times that while Parquet is decoded.
_VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset in memory, in the order of its shards.

    `feature_a_BI`, `feature_b_BI`: float32, raw encoder outputs. `label_B`: strings, or None.
    """

    feature_a_BI: np.ndarray
    feature_b_BI: np.ndarray
    label_B: np.ndarray | None

    def __len__(self) -> int:
        return len(self.feature_a_BI)


def download(ref: ShardRef | Shard, address: str, path: Path) -> Digests:
    """Download a file from `address`, verify it, and return its digests. Messages name `ref.uri`.

    Raises InvalidDataset, InvalidUri, StorageUnavailable.
    """
    fetch(ref, address, path)
    return verified_digests(ref, path)


def fetch(
    ref: ShardRef | Shard, address: str, path: Path, allowed: tuple[str, ...] | None = None
) -> None:
    """Download a file of any format from `address`. Messages name `ref.uri`.

    `allowed`: prefixes that it must not leave, also through links. Raises InvalidDataset, InvalidUri,
    StorageUnavailable.
    """
    store, key = locate(address) if allowed is None else locate_allowed(address, allowed)
    try:
        store.download(key, path)
    except ObjectNotFound as error:
        raise InvalidDataset(f"{ref.uri}: there is no such object") from error


def verified_digests(ref: ShardRef | Shard, path: Path) -> Digests:
    """Return the digests of a local copy. Raises InvalidDataset if `ref` has another one."""
    digests = digests_of_file(path)
    if ref.sha256 is not None and digests.sha256 != ref.sha256:
        raise InvalidDataset(f"{ref.uri}: its SHA-256 is {digests.sha256}, expected {ref.sha256}")
    return digests


def count_rows(path: Path, uri: str) -> int:
    """Number of rows of a shard, from its footer. Raises InvalidDataset if it has none."""
    rows: int = open_parquet(path, uri).metadata.num_rows
    if rows == 0:
        raise InvalidDataset(f"{uri}: it has no rows, at least 1 is needed")
    return rows


def describe_shard(
    path: Path, uri: str, known: Digests | None = None, source: SourceFile | None = None
) -> Shard:
    """The manifest's entry for the shard at `path`, which is stored at `uri`. Raises InvalidDataset.

    `known`: its digests, if they have been computed.
    """
    digests = known or digests_of_file(path)
    return Shard(
        uri=uri,
        sha256=digests.sha256,
        blake3=digests.blake3,
        bytes=path.stat().st_size,
        rows=count_rows(path, uri),
        source=source,
    )


def use_jemalloc() -> None:
    """Set Arrow's memory pool to jemalloc, if Arrow was built with it.

    With Arrow's default every second process reads a third slower.
    """
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def open_in_pieces(source: Path | pa.NativeFile) -> pq.ParquetFile:
    """Open a shard so that memory is independent of the size of its row groups."""
    return pq.ParquetFile(source, **BUFFERING)


def rows_at_once(schema: pa.Schema, values: int = _VALUES_AT_ONCE) -> int:
    """How many rows of a shard to decode at a time: fewer if they are wide."""
    width: int = sum(schema.field(name).type.list_size for name in FEATURES)
    return max(1, min(columns.ROWS_AT_ONCE, values // width))


def rows_of(files: Iterable[pq.ParquetFile], every: int = 1) -> Rows:
    """Rows of verified shards as float32: every `every`-th row, from the first.

    A file is requested when those before it are read. Other columns of the user are not read.
    """
    tables, rows = [], 0
    for file in files:
        tables.append(_read(file, -rows % every, every))
        rows += file.metadata.num_rows
    first_BI, second_BI = (
        np.concatenate([columns.float32_rows(table.column(column)) for table in tables])
        for column in FEATURES
    )
    return Rows(first_BI, second_BI, _labels(tables))


def _read(file: pq.ParquetFile, first: int, every: int) -> pa.Table:
    """Rows `first`, `first + every` and so on, in little more memory than they need."""
    known, parts, row = columns.known_columns(file.schema_arrow), [], 0
    for batch in file.iter_batches(rows_at_once(file.schema_arrow), columns=known):
        chosen = np.arange((first - row) % every, batch.num_rows, every)
        parts.append(batch.take(pa.array(chosen)))
        row += batch.num_rows
    schema = pa.schema([file.schema_arrow.field(name) for name in known])
    return pa.Table.from_batches(parts, schema)


def _labels(tables: list[pa.Table]) -> np.ndarray | None:
    if not all("label" in table.column_names for table in tables):
        return None
    return np.concatenate(
        [np.asarray(table.column("label").to_pylist(), dtype=object) for table in tables]
    )


ROWS_IN_A_GROUP = 8192


class ShardWriter:
    """Writes batches of any size as one file. Equal rows give equal bytes. Without rows, no file.

    A context manager. Raises StorageUnavailable if the disk cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with _disk():
            if error is None and self._waiting:
                self._write(pa.Table.from_batches(self._waiting))
            if self._writer is not None:
                self._writer.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        if not batch.num_rows:
            return
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._waiting_rows < ROWS_IN_A_GROUP:
            return
        table = pa.Table.from_batches(self._waiting)
        whole = self._waiting_rows - self._waiting_rows % ROWS_IN_A_GROUP
        with _disk():
            self._write(table.slice(0, whole))
        self._waiting = table.slice(whole).to_batches()
        self._waiting_rows -= whole

    def _write(self, table: pa.Table) -> None:
        schema = _without_gaps(table.schema)
        if self._writer is None:
            # Encoders' outputs hardly compress or repeat, and decoding would cost time in every read.
            dictionary = [name for name in table.column_names if name == "label"]
            self._writer = pq.ParquetWriter(
                self._path, schema, compression="none", use_dictionary=dictionary or False
            )
        self._writer.write_table(table.cast(schema), row_group_size=ROWS_IN_A_GROUP)


def _without_gaps(schema: pa.Schema) -> pa.Schema:
    """Declare features and their numbers as not nullable.

    Parquet stores a presence flag for each nullable number, and such files take 1.7 times as long to
    decode.
    """
    for name in FEATURES:
        index, of_lists = schema.get_field_index(name), schema.field(name).type
        number = pa.field("element", of_lists.value_type, nullable=False)
        features = pa.field(name, pa.list_(number, of_lists.list_size), nullable=False)
        schema = schema.set(index, features)
    return schema


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(f"a converted shard cannot be written: {error}") from error


def write_shard(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write all batches as one file and return the number of rows. Without rows, no file."""
    with ShardWriter(path) as writer:
        for batch in batches:
            writer.add(batch)
    return writer.rows


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
_TEXTS = ("id", "label")
# Values of one side: 512 KiB of float16, which stay in the cache between decoding and checking.
_CHECKED_AT_ONCE = 1 << 18


def wrong_rows(
    path: Path, uri: str, widths: tuple[int, int], digests: bytearray
) -> Iterator[tuple[int, str]]:
    """Rows of a shard that cannot be used, and why: a row may have several reasons. Repeated ids come last.

    `widths`: what the model declares for `feature_a` and `feature_b`. To the empty `digests`, 16 bytes are added for
    the id of each row; zeros where there is none. Raises InvalidDataset if the file cannot be used at all.
    """
    file = open_parquet(path, uri)
    schema = file.schema_arrow
    columns.check_names(schema, uri)
    for column, width in zip(FEATURES, widths, strict=True):
        _check_feature_type(schema.field(column).type, column, width, uri)
    texts = ColumnReader(file, path, uri, [name for name in _TEXTS if name in schema.names])
    step = max(1, min(columns.ROWS_AT_ONCE, _CHECKED_AT_ONCE // max(widths)))
    # A column at a time: batches stay in the cache.
    features = {column: ColumnReader(file, path, uri, [column], step) for column in FEATURES}
    first_row = 0
    for group in range(file.num_row_groups):
        row = first_row
        for batch in texts.batches(group):
            yield from _wrong_ids(batch.column("id"), row, uri, digests)
            if "label" in schema.names:
                yield from _wrong_labels(batch.column("label"), row, uri)
            row += batch.num_rows
        for column, reader in features.items():
            row = first_row
            for batch in reader.batches(group):
                yield from _wrong_in_column(batch.column(column), column, row)
                row += batch.num_rows
        first_row += file.metadata.row_group(group).num_rows
    for row, first in repeated_ids(np.frombuffer(digests, np.uint64)).tolist():
        rule = "ids are unique over all shards of a dataset"
        yield row, f"row {row} repeats the id of row {first} of {uri}; {rule}"


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
    return found_K2[np.argsort(found_K2[:, 0])]


def id_digest(value: str) -> bytes:
    """Sixteen bytes for an id of any length. Not cryptographic: colliding ids harm their own dataset alone."""
    digest: bytes = xxh3_128_digest(value.encode())
    return digest


def _wrong_ids(
    ids: pa.Array, first_row: int, uri: str, digests: bytearray
) -> Iterator[tuple[int, str]]:
    if len(digests) // DIGEST_BYTES + len(ids) > MOST_ROWS:
        raise InvalidDataset(f"{uri}: a dataset has at most {MOST_ROWS} rows; split it in two")
    values = columns.plain_text(ids, "id", uri).to_pylist()
    digests += b"".join(NO_ID if each is None else id_digest(each) for each in values)
    if ids.null_count:
        for row, value in enumerate(values, first_row):
            if value is None:
                yield row, f"row {row} has no id"


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
