"""Segments: Parquet files of features and payloads, written once and verified at every read.

Columns: `id`, `modality`, `feature` (list of float32 or float16; null in a removal), `payload` (a JSON
object as text, or null), `deleted`. Features are as the encoders gave them, or of unit length where they are stored
as float16: only their direction matters, and lengths could exceed float16.

What rows take in the memory of a replica has upper bounds here (`rows_bytes`), known before they are read. Memory
for reading is bounded and not counted: rows are read about 1 MiB of payloads at a time, and parts are merged up to
32 MiB of payloads (`index_builder.py`).

Shapes: B rows, F width of the raw feature.
"""

import hashlib
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmcl.contract.api.endpoint import FeatureType
from cmcl.contract.errors import DigestMismatch, InvalidVersion
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import sha256_of_file
from workers.serve.collections.index import GRAPH_FROM_ROWS, ROW_BYTES
from workers.serve.collections.revision_log import Segment, is_marked, marked, new_mark
from workers.serve.versions.loading import Float32Array

# The text, and each value in a table: `{"a":[1,1,...]}` has 2 bytes for one, and a table 12 more.
_PAYLOAD_TIMES = 7
_BYTES_OF_NUMBER = 4
# Offsets of a row's id and payload, and validity.
_BYTES_OF_PLACES = 16
# The index that answers, the one before for a rollback, and the one that is being built.
VERSIONS = 3
# Bytes of a row in a graph: its vector as float16, and its edges.
_BYTES_OF_HALF = 2
_BYTES_OF_EDGES = 700

ROWS_AT_ONCE = 4096
_BUFFER = 1 << 20
_SUFFIX = ".parquet"


def vectors_bytes(rows: int, width: int) -> int:
    """Bytes of so many rows: vectors of three versions of that width, and the overhead of each row."""
    return rows * (VERSIONS * _BYTES_OF_NUMBER * width + ROW_BYTES + _BYTES_OF_PLACES)


def graphs_bytes(rows: int, width: int) -> int:
    """Bytes of the graphs of a collection of so many rows, for three versions."""
    if rows < GRAPH_FROM_ROWS:
        return 0
    return rows * VERSIONS * (_BYTES_OF_HALF * width + _BYTES_OF_EDGES)


def texts_bytes(ids: int, payloads: int) -> int:
    """Bytes of ids and payloads that have so many bytes as text."""
    return ids + _PAYLOAD_TIMES * payloads


def rows_bytes(width: int, ids: Iterable[str], payloads: Iterable[str | None]) -> int:
    """Bytes of new rows in all."""
    sizes = [len(each.encode()) for each in ids]
    payload_sizes = (len((each or "").encode()) for each in payloads)
    return vectors_bytes(len(sizes), width) + texts_bytes(sum(sizes), sum(payload_sizes))


class Entry(NamedTuple):
    """One row to write. `feature_F` and `payload` are None in a removal; `payload` is JSON."""

    id: str
    modality: str
    feature_F: Float32Array | None
    payload: str | None


def schema(feature_type: FeatureType) -> pa.Schema:
    """Return the schema of the segments of a collection."""
    number = pa.float16() if feature_type == "float16" else pa.float32()
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("feature", pa.list_(number)),
            pa.field("payload", pa.string()),
            pa.field("deleted", pa.bool_(), nullable=False),
        ]
    )


def write_entries(
    store: ObjectStore,
    collection: str,
    entries: Sequence[Entry],
    feature_type: FeatureType,
    mark: str,
) -> Segment:
    """Store a segment that no revision names yet; the revision that names it sets `first` and `last`.

    `mark`: of the request that it is written for, see `revision_log.py`.
    """
    batch = entries_batch(entries, feature_type)
    sink = io.BytesIO()
    with segment_writer(sink, feature_type) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    name = new_name(mark)
    store.create(layout.collection_segment(collection, name), data)
    digest = hashlib.sha256(data).hexdigest()
    return Segment(
        name=name,
        sha256=digest,
        bytes=len(data),
        rows=len(entries),
        texts_bytes=batch_texts_bytes(batch),
        first=1,
        last=1,
    )


def store_file(store: ObjectStore, collection: str, path: Path, template: Segment) -> Segment:
    """Store a file that was written with `segment_writer`; its rows and revisions are the template's."""
    name = new_name(new_mark())
    store.upload(path, layout.collection_segment(collection, name))
    fields = {"name": name, "sha256": sha256_of_file(path), "bytes": path.stat().st_size}
    return template.model_copy(update=fields)


def entries_batch(entries: Sequence[Entry], feature_type: FeatureType) -> pa.RecordBatch:
    """Return rows as they are stored, by modality, so that a reader gets long runs of one width."""
    ordered = sorted(entries, key=lambda entry: entry.modality)
    columns = {
        "id": pa.array([entry.id for entry in ordered], pa.string()),
        "modality": pa.array([entry.modality for entry in ordered], pa.string()),
        "feature": _features([entry.feature_F for entry in ordered], feature_type),
        "payload": pa.array([entry.payload for entry in ordered], pa.string()),
        "deleted": pa.array([entry.feature_F is None for entry in ordered], pa.bool_()),
    }
    return pa.record_batch(list(columns.values()), schema=schema(feature_type))


def _features(features: Sequence[Float32Array | None], feature_type: FeatureType) -> pa.ListArray:
    widths = [0 if feature_F is None else len(feature_F) for feature_F in features]
    offsets = pa.array(np.concatenate([[0], np.cumsum(widths)]), pa.int32())
    present = [feature_F for feature_F in features if feature_F is not None]
    if feature_type == "float16":
        present = [_halved(feature_F) for feature_F in present]
    values = np.concatenate(present) if present else np.zeros(0, np.dtype(feature_type))
    missing = pa.array([feature_F is None for feature_F in features], pa.bool_())
    return pa.ListArray.from_arrays(offsets, pa.array(values), mask=missing)


def _halved(feature_F: Float32Array) -> np.ndarray:
    return (feature_F / np.linalg.norm(feature_F)).astype(np.float16)


def segment_writer(sink: io.BytesIO | Path, feature_type: FeatureType) -> pq.ParquetWriter:
    """Return a writer. Features neither compress nor repeat: trying would cost time at every read."""
    return pq.ParquetWriter(
        sink,
        schema(feature_type),
        compression={"id": "zstd", "modality": "zstd", "payload": "zstd", "deleted": "zstd"},
        use_dictionary=["modality"],
        write_statistics=False,
    )


def new_name(mark: str) -> str:
    """Return a name: in lexical order the oldest is first, and it has the age and the mark."""
    return f"{time.time_ns() // 1_000_000:013d}-{marked(mark)}{_SUFFIX}"


def batch_texts_bytes(batch: pa.RecordBatch) -> int:
    """Bytes that the ids and payloads of these rows take in memory, or less."""
    ids, payloads = (
        pc.sum(pc.binary_length(batch.column(name)), min_count=0).as_py()
        for name in ("id", "payload")
    )
    return texts_bytes(ids, payloads)


def is_written_for(name: str, mark: str) -> bool:
    """Whether the segment of this name was written for the request with this mark."""
    return is_marked(name.partition("-")[2], mark)


def age_seconds(name: str, now: float) -> float:
    """Return the age of a segment by its name; `now` in seconds since 1970."""
    return now - int(name.partition("-")[0]) / 1000


@contextmanager
def opened(store: ObjectStore, collection: str, segment: Segment) -> Iterator[pq.ParquetFile]:
    """Open a segment, verified, from a copy on the local disk: it may be larger than the memory.

    Raises ObjectNotFound, DigestMismatch, InvalidVersion, StorageUnavailable.
    """
    key = layout.collection_segment(collection, segment.name)
    with TemporaryDirectory(prefix="cmcl-segment-") as folder:
        path = Path(folder) / "segment.parquet"
        store.download(key, path)
        if sha256_of_file(path) != segment.sha256:
            raise DigestMismatch(f"{key} does not have the SHA-256 of its revision")
        try:
            file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise InvalidVersion(f"{key} cannot be read: {error}") from error
        with file:
            yield file


def batches(
    store: ObjectStore, collection: str, segment: Segment, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield its rows, some at a time. Raises as `opened` does."""
    with opened(store, collection, segment) as file:
        yield from file.iter_batches(ROWS_AT_ONCE, columns=columns)


def features_matrix(column: pa.ListArray) -> Float32Array:
    """Return features of one modality as B × F. Raises InvalidVersion where widths differ."""
    widths = np.unique(np.diff(column.offsets.to_numpy()))
    if len(widths) != 1:
        raise InvalidVersion(f"features of one modality have widths {widths.tolist()}")
    values = column.flatten().to_numpy(zero_copy_only=False)
    # Copied: torch does not take read-only arrays, as Arrow's are.
    return np.array(values.reshape(len(column), int(widths[0])), np.float32)
