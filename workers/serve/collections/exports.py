"""Exports of a collection for other stores: vectors of one version, at one revision.

Qdrant: a JSON line for each point, as its upsert takes them. Ids there must be UUIDs, so the id is in the payload
under `_cmcl`, and the point's is derived from it: exporting again updates the same points. pgvector: a table, and
CSV for its COPY. Parquet and Arrow: a table for LanceDB, DuckDB, Milvus and everything else that reads one; version
and revision are in the metadata of its schema.
"""

import csv
import io
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from workers.serve.collections.index import Index

_ROWS_AT_ONCE = 256
# Of a row group of Parquet: a few MiB.
_GROUP_BYTES = 4 << 20
# Beyond it pgvector stores vectors, but indexes none.
_WIDEST_INDEXED = 2000
_POINTS = uuid.UUID("6a3a1d5e-0c0f-4d53-9c62-5f1f2f6e8c11")
COLUMNS = ("id", "modality", "payload", "embedding")

Export = Callable[[Index], Iterator[bytes]]


def qdrant_points(index: Index) -> Iterator[bytes]:
    """JSON lines: {"id", "vector", "payload"}."""
    for rows in _rows(index):
        yield b"".join(_point(index, *row) for row in rows)


def _point(index: Index, id_: str, modality: str, payload: str | None, vector: object) -> bytes:
    origin = {"id": id_, "modality": modality, "version": index.version.label}
    # json keeps integers of any size; orjson turns those beyond 64 bits into floats.
    marked = json.dumps({**json.loads(payload or "{}"), "_cmcl": origin}, ensure_ascii=False)
    point = {
        "id": str(uuid.uuid5(_POINTS, id_)),
        "vector": vector,
        "payload": orjson.Fragment(marked),
    }
    return orjson.dumps(point, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def pgvector_rows(index: Index) -> Iterator[bytes]:
    """CSV with a header; a missing payload is an empty field, which COPY reads as NULL."""
    yield (",".join(COLUMNS) + "\n").encode()
    for rows in _rows(index):
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        for id_, modality, payload, vector in rows:
            text = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()
            writer.writerow((id_, modality, payload, text))
        yield sink.getvalue().encode()


def pgvector_table(table: str) -> Export:
    """SQL that creates the table, with a comment on how to load the rows."""

    def statements(index: Index) -> Iterator[bytes]:
        width = index.version.spec.width
        yield (
            f"-- Vectors of {index.version.label}. Fill it with: "
            f"\\copy {table} ({', '.join(COLUMNS)}) from 'export.csv' with (format csv, header)\n"
            "create extension if not exists vector;\n"
            f"create table {table} (\n"
            "    id text primary key,\n"
            "    modality text not null,\n"
            "    payload jsonb,\n"
            f"    embedding vector({width}) not null\n"
            ");\n"
        ).encode()
        if width <= _WIDEST_INDEXED:
            yield f"create index on {table} using hnsw (embedding vector_ip_ops);\n".encode()

    return statements


def parquet_table(index: Index) -> Iterator[bytes]:
    """A Parquet file, made while it is sent: memory is that of one row group."""
    sink = _Sink()
    # Vectors do not compress, and their dictionary would have as many entries as rows.
    writer = pq.ParquetWriter(
        sink, _schema(index), compression={"vector": "none"}, use_dictionary=["modality"]
    )
    with writer:
        for batch in _batches(index):
            writer.write_batch(batch)
            yield sink.taken()
    yield sink.taken()


def arrow_stream(index: Index) -> Iterator[bytes]:
    """The same table as a stream of Arrow IPC."""
    sink = _Sink()
    with pa.ipc.new_stream(sink, _schema(index)) as writer:
        for batch in _batches(index):
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


def _schema(index: Index) -> pa.Schema:
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("payload", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), index.version.spec.width), nullable=False),
    ]
    origin = {"cmcl.version": index.version.label, "cmcl.revision": str(index.revision)}
    return pa.schema(fields, metadata=origin)


def _batches(index: Index) -> Iterator[pa.RecordBatch]:
    """Live rows, a few MiB at a time."""
    width, schema = index.version.spec.width, _schema(index)
    most = max(1, _GROUP_BYTES // (4 * width))
    for part in index.parts:
        live = part.live_N.nonzero()[0]
        for start in range(0, len(live), most):
            rows = live[start : start + most]
            vectors = pa.FixedSizeListArray.from_arrays(part.vectors_NE[rows].ravel(), width)
            columns = [
                part.contents.ids.take(rows),
                pa.repeat(part.contents.modality, len(rows)),
                part.contents.payloads.texts.take(rows),
                vectors,
            ]
            cast = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(cast, schema=schema)


# Formats and their media types; the table needs a name, so it is separate.
FORMATS: Mapping[str, tuple[Export, str]] = MappingProxyType(
    {
        "qdrant": (qdrant_points, "application/x-ndjson"),
        "pgvector": (pgvector_rows, "text/csv; charset=utf-8"),
        "parquet": (parquet_table, "application/vnd.apache.parquet"),
        "arrow": (arrow_stream, "application/vnd.apache.arrow.stream"),
    }
)


def _rows(index: Index) -> Iterator[list[tuple[str, str, str | None, object]]]:
    """Live rows, some at a time: id, modality, payload, vector."""
    for part in index.parts:
        live = part.live_N.nonzero()[0]
        for start in range(0, len(live), _ROWS_AT_ONCE):
            rows = live[start : start + _ROWS_AT_ONCE]
            contents = part.contents
            yield [
                (
                    contents.ids[row].as_py(),
                    contents.modality,
                    contents.payloads.texts[row].as_py(),
                    part.vectors_NE[row],
                )
                for row in rows.tolist()
            ]
