"""Exports of a collection, made while they are sent: memory is that of some rows."""

import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.serve.collections.searching import Searched

_GROUP_BYTES = 4 << 20
# Vectors do not compress, and their dictionary would have as many entries as rows.
_parquet = partial(pq.ParquetWriter, compression={"vector": "none"}, use_dictionary=["modality"])
# Formats: their writers and media types.
FORMATS: Mapping[str, tuple[Callable[..., Any], str]] = MappingProxyType(
    {
        "parquet": (_parquet, "application/vnd.apache.parquet"),
        "arrow": (pa.ipc.new_stream, "application/vnd.apache.arrow.stream"),
    }
)


def exported(searched: Searched, format_: str) -> Iterator[bytes]:
    """Yield a file or stream of one of the formats, with all items that have a vector."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("payload", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), searched.width), nullable=False),
    ]
    origin = {"cmcl.version": searched.version.label, "cmcl.revision": str(searched.revision)}
    schema, sink = pa.schema(fields, metadata=origin), _Sink()
    open_writer, _ = FORMATS[format_]
    with open_writer(sink, schema) as writer:
        for batch in searched.vectors(max(1, _GROUP_BYTES // (4 * searched.width))):
            writer.write_batch(batch.cast(schema))
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
