"""Shards of our own: Parquet in the internal form, in row groups that can be read one at a time."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.errors import StorageUnavailable
from workers.storage.formats.columns import FEATURES

ROWS_IN_A_GROUP = 8192


class ShardWriter:
    """Writes batches of any size as one file, once there is a row; the same rows, the same bytes.

    Use as a context manager. Raises StorageUnavailable where the disk does not take it.
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
        """More rows."""
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
            # Encoders' outputs neither compress nor repeat: trying costs time at every reading.
            dictionary = [name for name in table.column_names if name == "label"]
            self._writer = pq.ParquetWriter(
                self._path, schema, compression="none", use_dictionary=dictionary or False
            )
        self._writer.write_table(table.cast(schema), row_group_size=ROWS_IN_A_GROUP)


def _without_gaps(schema: pa.Schema) -> pa.Schema:
    """No feature and no number of one may be missing. Parquet notes for each number whether it is there
    unless it is told so: such files take 1.7 times as long to be decoded."""
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
    """All batches as one file; how many rows. Without any, there is no file."""
    with ShardWriter(path) as writer:
        for batch in batches:
            writer.add(batch)
    return writer.rows
