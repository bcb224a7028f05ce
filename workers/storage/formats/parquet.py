"""Parquet: the internal form itself, or lists that can be brought into it.

What the footer claims about features is held against the file's size (`parquet_footer`).
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.errors import InvalidDataset
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
from workers.storage.formats.parquet_footer import column_chunks
from workers.storage.formats.user_file import UserFile, check_expansion, reading

ENCRYPTED = b"PARE"
_ERRORS = (pa.ArrowException, ValueError)
# Without it, a column of a whole row group is read at once, however large the group; and buffered
# before it is asked for, all that was read stays in memory until the end of the file.
_BUFFER = 1 << 20
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
    with reading(uri, "Parquet", *_ERRORS):
        _check_footer(path, uri)
        return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)


def known_batches(parquet: pq.ParquetFile, path: Path, uri: str) -> Iterator[pa.RecordBatch]:
    """Our columns of its rows, as they are; texts by number of a dictionary."""
    schema = parquet.schema_arrow
    columns = known_columns(schema)
    # A text that fills a page and is repeated in each row must not be unfolded 8192 times.
    texts = [name for name in columns if name not in FEATURES and is_text(schema.field(name).type)]
    with reading(uri, "Parquet", *_ERRORS):
        again = pq.ParquetFile(
            path,
            read_dictionary=texts,
            metadata=parquet.metadata,
            buffer_size=_BUFFER,
            pre_buffer=False,
        )
        for batch in again.iter_batches(ROWS_AT_ONCE, columns=columns):
            # Damaged pages may hold numbers of texts that no dictionary has, and bytes that are no
            # text; Arrow looks only when it is asked to.
            batch.validate(full=True)
            yield batch


def _check_footer(path: Path, uri: str) -> None:
    """What the file claims to hold, before Arrow reads any of it. Raises InvalidDataset."""
    claimed = 0
    for chunk in column_chunks(path):
        if chunk.is_encrypted:
            raise InvalidDataset(f"{uri}: it is encrypted Parquet; write it without encryption")
        if chunk.column in FEATURES:
            claimed += chunk.values * _WIDEST
        elif chunk.column in ("id", "label"):
            claimed += chunk.page_bytes
    check_expansion(claimed, path, uri)
