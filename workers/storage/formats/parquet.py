"""Parquet: the internal form itself, or lists that can be brought into it.

Bounds: a footer of 64 MiB; what the footer claims about features is held against the file's size.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workers.contract.errors import InvalidDataset
from workers.storage.formats.columns import (
    FEATURES,
    ROWS_AT_ONCE,
    check_columns,
    internal_batch,
    is_convertible,
    is_internal,
    is_text,
    known_columns,
)
from workers.storage.formats.user_file import UserFile, check_expansion, reading

MAGIC = b"PAR1"
ENCRYPTED = b"PARE"
LARGEST_FOOTER = 64 << 20
_ERRORS = (pa.ArrowException, ValueError)
_WIDEST = 8  # bytes of the longest number that a column of features can hold


def read(file: UserFile) -> Iterator[pa.RecordBatch]:
    """Batches in the internal form. Raises InvalidDataset."""
    parquet = open_parquet(file.path, file.uri)
    check_columns(parquet.schema_arrow, file)
    first_row = 0
    for batch in known_batches(parquet, file.path, file.uri):
        yield internal_batch(batch, first_row, file)
        first_row += batch.num_rows


def must_be_converted(path: Path, uri: str) -> bool:
    """Whether features are lists of another kind than the internal form has, such as pandas writes."""
    schema = open_parquet(path, uri).schema_arrow
    types = [schema.field(name).type for name in FEATURES if schema.names.count(name) == 1]
    return any(is_convertible(type_) and not is_internal(type_) for type_ in types)


def open_parquet(path: Path, uri: str) -> pq.ParquetFile:
    """The file with its footer read. Raises InvalidDataset."""
    _check_footer(path, uri)
    with reading(uri, "Parquet", *_ERRORS):
        parquet = pq.ParquetFile(path)
    check_expansion(_claimed(parquet.metadata), path, uri)
    return parquet


def known_batches(parquet: pq.ParquetFile, path: Path, uri: str) -> Iterator[pa.RecordBatch]:
    """Our columns of its rows, as they are; texts by number of a dictionary."""
    schema = parquet.schema_arrow
    columns = known_columns(schema)
    # A text that fills a page and is repeated in each row must not be unfolded 8192 times.
    texts = [name for name in columns if name not in FEATURES and is_text(schema.field(name).type)]
    with reading(uri, "Parquet", *_ERRORS):
        again = pq.ParquetFile(path, read_dictionary=texts, metadata=parquet.metadata)
        for batch in again.iter_batches(ROWS_AT_ONCE, columns=columns):
            # Damaged pages may hold numbers of texts that no dictionary has, and bytes that are no
            # text; Arrow looks only when it is asked to.
            batch.validate(full=True)
            yield batch


def _check_footer(path: Path, uri: str) -> None:
    """The last eight bytes: how long the footer is, and the magic word."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        tail = file.read()
    if tail[4:] == ENCRYPTED:
        raise InvalidDataset(f"{uri}: it is encrypted Parquet; write it without encryption")
    footer = int.from_bytes(tail[:4], "little")
    if tail[4:] == MAGIC and LARGEST_FOOTER < footer < size:
        raise InvalidDataset(
            f"{uri}: its footer has {footer} bytes, at most {LARGEST_FOOTER} are read; "
            "write fewer columns or larger row groups"
        )


def _claimed(metadata: pq.FileMetaData) -> int:
    """Bytes of all features, if the footer is right."""
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(group.num_columns))
    return sum(
        chunk.num_values * _WIDEST
        for chunk in chunks
        if chunk.path_in_schema.partition(".")[0] in FEATURES
    )
