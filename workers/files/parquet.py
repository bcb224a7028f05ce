"""Parquet: the internal form itself, or lists that can be converted to it.

Sizes of features that the footer declares are compared with the file's size, and declared rows with the
rows that are read: Arrow continues if a row group ends early, and stops if it is longer than declared.
Arrow ends the process for an encrypted column behind a plain footer, and perhaps for damage: read users' files in a
bounded child only.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmcl.contract.errors import InvalidDataset
from workers.files.columns import (
    FEATURES,
    HALF_OR_SINGLE,
    ROWS_AT_ONCE,
    UserFile,
    check_columns,
    check_expansion,
    internal_batch,
    is_text,
    known_columns,
    reading,
)

MAGIC, ENCRYPTED = b"PAR1", b"PARE"
LARGEST_FOOTER = 32 << 20
_ERRORS = (pa.ArrowException, ValueError)
# Without a buffer Arrow reads a column of a whole row group at once, of any size. With pre-buffering it
# keeps everything in memory until the end of the file, at two thirds of the rate.
BUFFERING: dict[str, Any] = {"buffer_size": 1 << 20, "pre_buffer": False}
_TEXTS = ("id", "label")
_WRITE_AGAIN = "the file is damaged, write it again"
_WIDEST = 8  # bytes of the longest number that a column of features can hold


def read(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    parquet = open_parquet(file.path, file.uri)
    check_columns(parquet.schema_arrow, file)
    first_row = 0
    with reading(file.uri, "Parquet", *_ERRORS):
        for batch in _known_batches(parquet.metadata, file.path, file.uri):
            yield internal_batch(batch, first_row, file)
            first_row += batch.num_rows


def is_internal(path: Path, uri: str) -> bool:
    """Whether features are stored in the internal form, and not as other lists, such as those of pandas."""
    schema = open_parquet(path, uri).schema_arrow
    types = [schema.field(name).type for name in FEATURES if schema.names.count(name) == 1]
    return all(
        pa.types.is_fixed_size_list(each) and each.value_type in HALF_OR_SINGLE for each in types
    )


def open_parquet(path: Path, uri: str) -> pq.ParquetFile:
    """Open the file and check its footer. Raises InvalidDataset."""
    with reading(uri, "Parquet", *_ERRORS):
        with path.open("rb") as file:
            read_footer(file, path.stat().st_size)
        parquet = pq.ParquetFile(path, **BUFFERING)
        _check_sizes(parquet.metadata, path, uri)
        _check_declared_rows(parquet.metadata, uri)
        return parquet


def _known_batches(footer: pq.FileMetaData, path: Path, uri: str) -> Iterator[pa.RecordBatch]:
    """Yield batches of our columns, unconverted; texts are dictionary-encoded. Features must be lists.

    The file is mapped into memory: it must be a copy that no other process truncates. Raises InvalidDataset, also if
    declared rows are missing.
    """
    schema = footer.schema.to_arrow_schema()
    columns = known_columns(schema)
    # Pages of a mapped file are no memory of the process, unlike those of a buffered one. A text that fills a page and is
    # repeated in every row must not be expanded 2048 times.
    texts = [name for name in columns if name not in FEATURES and is_text(schema.field(name).type)]
    file = pq.ParquetFile(
        path, read_dictionary=texts, metadata=footer, memory_map=True, pre_buffer=False
    )
    # Group by group, as ranks read only the groups that contain their rows.
    for group in range(footer.num_row_groups):
        counts: Counter[str] = Counter()
        # Arrow's threads take a fifth of the processor time, and other files are read at the same time.
        for batch in file.iter_batches(
            ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False
        ):
            # Damaged pages may contain dictionary indices out of range and bytes that are not UTF-8; Arrow checks them
            # only on request.
            batch.validate(full=True)
            counts += _counts(batch)
            yield batch
        _check_read_rows(footer.row_group(group), group, counts, uri)


def _check_read_rows(
    group: pq.RowGroupMetaData, index: int, counts: Counter[str], uri: str
) -> None:
    """Check that everything that is declared was read. Raises InvalidDataset."""
    if counts["rows"] != group.num_rows:
        raise InvalidDataset(
            f"{uri}: row group {index} declares {group.num_rows} rows, and "
            f"{counts['rows']} were read; {_WRITE_AGAIN}"
        )
    for column, values in _declared_values(group):
        if column in FEATURES and values != counts[column]:
            raise InvalidDataset(
                f"{uri}: in row group {index} column {column!r} declares {values} "
                f"numbers, and {counts[column]} were read; {_WRITE_AGAIN}"
            )


def _check_sizes(metadata: pq.FileMetaData, path: Path, uri: str) -> None:
    """Check declared sizes before Arrow reads any page. Raises InvalidDataset."""
    claimed = 0
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        for chunk in (group.column(index) for index in range(group.num_columns)):
            name = chunk.path_in_schema.partition(".")[0]
            if name in FEATURES:
                claimed += chunk.num_values * _WIDEST
            elif name in _TEXTS:
                # After decompression, still encoded.
                claimed += chunk.total_uncompressed_size
    check_expansion(claimed, path, uri)


def _check_declared_rows(metadata: pq.FileMetaData, uri: str) -> None:
    """Check that the footer is consistent. Raises InvalidDataset."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    if rows != metadata.num_rows:
        raise InvalidDataset(
            f"{uri}: its footer declares {metadata.num_rows} rows, and its row groups have {rows} "
            f"together; {_WRITE_AGAIN}"
        )
    for index, group in enumerate(groups):
        for column, values in _declared_values(group):
            if column not in FEATURES and values != group.num_rows:
                raise InvalidDataset(
                    f"{uri}: row group {index} declares {group.num_rows} rows, and its column "
                    f"{column!r} has {values}; {_WRITE_AGAIN}"
                )


def _declared_values(group: pq.RowGroupMetaData) -> Iterator[tuple[str, int]]:
    """Declared values of our columns: one per row, or for features each number of a list."""
    for index in range(group.num_columns):
        column = group.column(index)
        name, _, inner = column.path_in_schema.partition(".")
        if name in FEATURES or (name in _TEXTS and not inner):
            yield name, column.num_values


def _counts(batch: pa.RecordBatch) -> Counter[str]:
    """Rows of a batch, and values of its features as Parquet counts them: a missing or empty list is one."""
    counts = Counter({"rows": batch.num_rows})
    for name in FEATURES:
        lists = batch.column(name)
        counts[name] = len(lists.flatten()) + lists.null_count
        if not pa.types.is_fixed_size_list(lists.type):
            counts[name] += pc.sum(pc.equal(pc.list_value_length(lists), 0)).as_py() or 0
    return counts


def read_footer(file: BinaryIO, size: int) -> bytes:
    """The footer of a file of `size` bytes. Raises ValueError."""
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > size - 8:
        raise ValueError("it does not end as Parquet does; it was perhaps cut off")
    if length > LARGEST_FOOTER:
        raise ValueError(
            f"its footer has {length} bytes, at most {LARGEST_FOOTER} are read; "
            "write fewer columns or larger row groups"
        )
    file.seek(size - 8 - length)
    return file.read(length)
