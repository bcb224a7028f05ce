"""Exports of a collection, made while they are sent: memory is that of some rows."""

import io
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.serve.collections.searching import Searched

_GROUP_BYTES = 4 << 20
Export = Callable[[Searched], Iterator[bytes]]


def parquet_table(searched: Searched) -> Iterator[bytes]:
    """A Parquet file."""
    sink = _Sink()
    # Vectors do not compress, and their dictionary would have as many entries as rows.
    with pq.ParquetWriter(
        sink, _schema(searched), compression={"vector": "none"}, use_dictionary=["modality"]
    ) as writer:
        for batch in _batches(searched):
            writer.write_batch(batch)
            yield sink.taken()
    yield sink.taken()


def arrow_stream(searched: Searched) -> Iterator[bytes]:
    """The same table as a stream of Arrow IPC."""
    sink = _Sink()
    with pa.ipc.new_stream(sink, _schema(searched)) as writer:
        for batch in _batches(searched):
            writer.write_batch(batch)
            yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A file that holds what was written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Keep a copy."""
        self._written.append(bytes(data))
        return len(self._written[-1])

    def taken(self) -> bytes:
        """What was written since the last call."""
        data = b"".join(self._written)
        self._written.clear()
        return data


def _schema(searched: Searched) -> pa.Schema:
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("payload", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), searched.width), nullable=False),
    ]
    origin = {"cmcl.version": searched.version.label, "cmcl.revision": str(searched.revision)}
    return pa.schema(fields, metadata=origin)


def _batches(searched: Searched) -> Iterator[pa.RecordBatch]:
    schema = _schema(searched)
    rows = max(1, _GROUP_BYTES // (4 * searched.width))
    for batch in searched.vectors(rows):
        yield pa.RecordBatch.from_arrays(
            [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)],
            schema=schema,
        )


# Formats and their media types.
FORMATS: Mapping[str, tuple[Export, str]] = MappingProxyType(
    {
        "parquet": (parquet_table, "application/vnd.apache.parquet"),
        "arrow": (arrow_stream, "application/vnd.apache.arrow.stream"),
    }
)
