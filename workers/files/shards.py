"""Feature shards: Parquet with `id`, optional `label`, and `feature_a`, `feature_b` as fixed-size lists.

`formats` converts other files into this form.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.dataset import Shard, ShardRef, SourceFile
from cmcl.contract.errors import InvalidDataset, ObjectNotFound, StorageUnavailable
from cmcl.storage.uris import locate, locate_allowed
from cmcl.storage.versions import Digests, digests_of_file
from workers.files.columns import FEATURES, ROWS_AT_ONCE, float32_rows, known_columns
from workers.files.parquet import BUFFERING, open_parquet

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
    return max(1, min(ROWS_AT_ONCE, values // width))


def rows_of(files: Iterable[pq.ParquetFile], every: int = 1) -> Rows:
    """Rows of verified shards as float32: every `every`-th row, from the first.

    A file is requested when those before it are read. Other columns of the user are not read.
    """
    tables, rows = [], 0
    for file in files:
        tables.append(_read(file, -rows % every, every))
        rows += file.metadata.num_rows
    first_BI, second_BI = (
        np.concatenate([float32_rows(table.column(column)) for table in tables])
        for column in FEATURES
    )
    return Rows(first_BI, second_BI, _labels(tables))


def _read(file: pq.ParquetFile, first: int, every: int) -> pa.Table:
    """Rows `first`, `first + every` and so on, in little more memory than they need."""
    known, parts, row = known_columns(file.schema_arrow), [], 0
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
