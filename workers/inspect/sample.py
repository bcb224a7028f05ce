"""Rows of a dataset that was not posted yet, as many as memory should hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.errors import InvalidDataset
from workers.model.rows import PairedRows
from workers.storage.formats.user_file import reading
from workers.storage.shards import FEATURES, open_in_pieces, rows_at_once, rows_of
from workers.train.rows.dataset import paired_rows

# 256 MiB as float32; moments are summed and duplicates looked for in what is read.
MOST_VALUES = 2**26


@dataclass(frozen=True)
class Sample:
    """Rows that are looked at closely, evenly chosen out of `of`."""

    rows: PairedRows
    of: int

    @property
    def advice(self) -> tuple[str, ...]:
        """That there are others."""
        if len(self.rows) == self.of:
            return ()
        return (
            f"Findings and shares are of {len(self.rows):,} rows, evenly chosen out of {self.of:,}.",
        )


def sampled(paths: Sequence[Path], most_values: int = MOST_VALUES) -> Sample | None:
    """Rows of `most_values` values at most over both sides, whatever these are.

    None where files are missing or not what they must be, or where a row alone has more. Raises
    StorageUnavailable where this machine cannot read them.
    """
    if not all(path.exists() for path in paths):
        return None
    try:
        with reading("the rows", "Parquet", pa.ArrowException):
            return _sampled(paths, most_values)
    except InvalidDataset:
        return None


def _sampled(paths: Sequence[Path], most_values: int) -> Sample | None:
    schemas = [file.schema_arrow for file in _opened(paths)]
    if not all(_are_alike(schemas, column) for column in FEATURES):
        return None
    width = sum(schemas[0].field(column).type.list_size for column in FEATURES)
    most_rows = most_values // width
    if most_rows == 0:
        return None
    rows = 0
    for file in _opened(paths):
        complete = _complete_rows(file)
        if complete == 0:
            return None
        rows += complete
    return Sample(paired_rows(rows_of(_opened(paths), every=-(-rows // most_rows))), rows)


def _opened(paths: Sequence[Path]) -> Iterator[pq.ParquetFile]:
    """One after the other: each is closed when the next one is asked for."""
    for path in paths:
        with open_in_pieces(path) as file:
            yield file


def _are_alike(schemas: Sequence[pa.Schema], column: str) -> bool:
    """Whether every file has it once, as fixed-size lists of floats of one width."""
    if any(schema.names.count(name) > 1 for schema in schemas for name in ("label", column)):
        return False
    if any(column not in schema.names for schema in schemas):
        return False
    first, *others = (schema.field(column).type for schema in schemas)
    if not pa.types.is_fixed_size_list(first) or any(
        _gist(kind) != _gist(first) for kind in others
    ):
        return False
    return bool(first.list_size > 0 and pa.types.is_floating(first.value_type))


def _gist(kind: pa.DataType) -> tuple[object, ...]:
    """Of lists: what numbers and how many. Whether one may be missing is part of the type as well."""
    return (kind.value_type, kind.list_size) if pa.types.is_fixed_size_list(kind) else (kind,)


def _complete_rows(file: pq.ParquetFile) -> int:
    """Number of rows, or 0 if rows or values are missing or the footer declares another number."""
    rows = 0
    # The footer alone is no evidence: rows are spread over the file by their number (`rows_of`).
    for batch in file.iter_batches(rows_at_once(file.schema_arrow), columns=list(FEATURES)):
        if any(column.null_count or column.flatten().null_count for column in batch.columns):
            return 0
        rows += batch.num_rows
    return rows if rows == file.metadata.num_rows else 0
