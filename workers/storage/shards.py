"""Feature shards: Parquet with `id`, optional `label`, and `feature_a`, `feature_b` as fixed-size lists.

Checks, reads and writes them. Errors in rows are reported in the user's terms. `formats` converts other
files into this form.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.dataset import Shard, ShardRef, SourceFile
from cmcl.contract.errors import InvalidDataset, ObjectNotFound, StorageUnavailable
from workers.storage.formats import columns
from workers.storage.formats.parquet import BUFFERING, known_batches, open_parquet
from workers.storage.uris import locate, locate_allowed
from workers.storage.versions import Digests, digests_of_file

FEATURES = columns.FEATURES
# Rows are scaled to unit length in float32, in which squares underflow and overflow: outside of these
# lengths a row would silently lose its direction. The query endpoint has the same bounds.
_SHORTEST = 1e-12
_LONGEST = 1e18
# Of both sides: 16 MiB as float32, and a few times that while Parquet is decoded.
_VALUES_AT_ONCE = 1 << 22
# Sixteen bytes of digest are kept per id to find duplicates: about 6 GiB for this many rows.
MOST_ROWS = 50_000_000


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


def download(
    ref: ShardRef | Shard, address: str, path: Path, allowed: tuple[str, ...] | None = None
) -> Digests:
    """Download a user's file of any format from `address` and return its digests.

    Messages name `ref.uri`. `allowed`: prefixes that it must not leave, also through links. Raises
    InvalidDataset, InvalidUri, StorageUnavailable.
    """
    store, key = locate(address) if allowed is None else locate_allowed(address, allowed)
    try:
        store.download(key, path)
    except ObjectNotFound as error:
        raise InvalidDataset(f"{ref.uri}: there is no such object") from error
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


class ShardChecker:
    """Checks the contents of one dataset's shards, one after another, in constant memory for features.

    `widths`: what the model declares for `feature_a` and `feature_b`.
    """

    def __init__(self, widths: tuple[int, int]) -> None:
        self._widths = dict(zip(FEATURES, widths, strict=True))
        self._seen: set[bytes] = set()

    def check(self, path: Path, uri: str) -> None:
        """Check a shard. Raises InvalidDataset that names file, column and row."""
        file = open_parquet(path, uri)
        self._check_columns(file.schema_arrow, uri)
        first_row = 0
        for batch in known_batches(file, path, uri):
            self._check_batch(batch, first_row, uri)
            first_row += batch.num_rows

    def _check_batch(self, batch: pa.RecordBatch, first_row: int, uri: str) -> None:
        self._check_ids(batch.column("id"), first_row, uri)
        if "label" in batch.schema.names:
            _check_labels(batch.column("label"), first_row, uri)
        for column in FEATURES:
            _check_values(batch.column(column), column, first_row, uri)

    def _check_columns(self, schema: pa.Schema, uri: str) -> None:
        columns.check_names(schema, uri)
        for column, width in self._widths.items():
            _check_feature_type(schema.field(column).type, column, width, uri)

    def _check_ids(self, ids: pa.Array, first_row: int, uri: str) -> None:
        if len(self._seen) + len(ids) > MOST_ROWS:
            raise InvalidDataset(f"{uri}: a dataset has at most {MOST_ROWS} rows; split it in two")
        for offset, value in enumerate(columns.plain_text(ids, "id", uri).to_pylist()):
            if value is None:
                raise InvalidDataset(f"{uri}: row {first_row + offset} has no id")
            # Sixteen bytes per id of any length.
            digest = hashlib.blake2b(value.encode(), digest_size=16).digest()
            if digest in self._seen:
                raise InvalidDataset(
                    f"{uri}: row {first_row + offset} repeats the id {value!r}; "
                    "ids are unique over all shards of a dataset"
                )
            self._seen.add(digest)


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


def _check_feature_type(type_: pa.DataType, column: str, width: int, uri: str) -> None:
    if not columns.is_internal(type_):
        raise InvalidDataset(
            f"{uri}: column {column!r} must be a fixed-size list of float16 or float32, is {type_}"
        )
    if type_.list_size != width:
        raise InvalidDataset(
            f"{uri}: column {column!r} has width {type_.list_size}, the model declares {width}"
        )


def _check_labels(labels: pa.Array, first_row: int, uri: str) -> None:
    """Read all labels, so that damage is found now and not by the training job."""
    for offset, value in enumerate(columns.plain_text(labels, "label", uri).to_pylist()):
        if value is None:
            raise InvalidDataset(
                f"{uri}: row {first_row + offset} has no label; "
                "fill the column 'label', or leave it out"
            )


def _check_values(features: pa.Array, column: str, first_row: int, uri: str) -> None:
    if features.null_count or features.flatten().null_count:
        raise InvalidDataset(f"{uri}: column {column!r} has missing values")
    values_BI = columns.float32_rows(features)
    finite_B = np.isfinite(values_BI).all(axis=1)
    if not finite_B.all():
        row = first_row + int(np.argmin(finite_B))
        raise InvalidDataset(f"{uri}: column {column!r} has NaN or infinity in row {row}")
    length_B = np.linalg.norm(values_BI.astype(np.float64), axis=1)
    fits_B = (length_B >= _SHORTEST) & (length_B <= _LONGEST)
    if not fits_B.all():
        index = int(np.argmin(fits_B))
        length = float(length_B[index])
        found = f"has length {length:.3g}" if length else "is all zeros"
        raise InvalidDataset(
            f"{uri}: column {column!r} {found} in row {first_row + index}; "
            f"permitted are lengths from {_SHORTEST:g} to {_LONGEST:g}"
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
