"""Compaction: many small segments become one, without the rows that were replaced.

Removals are dropped as well, once nothing is left that they remove.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmcl.contract.api.endpoint import FeatureType
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections.revision_log import Dropped, Revision, Segment, commit
from workers.serve.collections.segments import (
    batch_texts_bytes,
    batches,
    segment_writer,
    store_file,
)

# Compaction begins at so many.
MOST_SEGMENTS = 16
# For how long a revision may be read after it was replaced.
GRACE = timedelta(hours=1)


class Superseded(Exception):
    """These segments were merged or deleted by another replica in the meantime."""


def is_due(revision: Revision) -> bool:
    """Whether the collection is due for compaction."""
    return len(revision.segments) >= MOST_SEGMENTS


def first_to_merge(sizes: Sequence[int]) -> int:
    """Return where the pieces to merge begin, on disk and in memory alike: all from here on.

    That is the first piece no larger than all after it together. So a row is moved a few times in all, the
    logarithm of the size, and as many pieces remain at most.
    """
    for index, size in enumerate(sizes):
        if size <= sum(sizes[index + 1 :]):
            return index
    return max(len(sizes) - 2, 0)


def run_to_merge(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Return the segments to merge, see `first_to_merge`."""
    return tuple(segments[first_to_merge([segment.bytes for segment in segments]) :])


def compact(store: ObjectStore, revision: Revision) -> Revision:
    """Merge segments in a new revision with the same rows.

    Raises Superseded, StorageUnavailable, CollectionBusy. A segment that did not become visible is swept later.
    """
    run = run_to_merge(revision.segments)
    merged = _merge(store, revision, run)

    def change(head: Revision | None) -> Revision:
        if head is None:
            raise Superseded(revision.name)
        return _replaced(head, run, merged)

    return commit(store, revision.name, change)


def _replaced(head: Revision, run: tuple[Segment, ...], merged: tuple[Segment, ...]) -> Revision:
    names = [segment.name for segment in head.segments]
    if run[0].name not in names:
        raise Superseded(head.name)
    start = names.index(run[0].name)
    if head.segments[start : start + len(run)] != run:
        raise Superseded(head.name)
    now = datetime.now(UTC)
    segments = (*head.segments[:start], *merged, *head.segments[start + len(run) :])
    dropped = (*still_kept(head, now), *(Dropped(name=each.name, at=now) for each in run))
    fields = {"segments": segments, "dropped": dropped, "changed_at": now}
    if start == 0:
        fields["purged"] = run[-1].last
    return head.model_copy(update=fields)


def still_kept(revision: Revision, now: datetime) -> tuple[Dropped, ...]:
    """Return what was dropped so recently that it may still be read."""
    return tuple(each for each in revision.dropped if now - each.at < GRACE)


def _merge(store: ObjectStore, revision: Revision, run: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Return one segment, or none where no row is left."""
    keeps_removals = run[0] != revision.segments[0]
    with TemporaryDirectory(prefix="cmcl-compaction-") as folder:
        path = Path(folder) / "merged.parquet"
        kept = _kept_batches(store, revision.name, run, keeps_removals)
        rows, texts_bytes = _write(path, kept, revision.feature_type)
        if not rows:
            return ()
        fields = {
            "rows": rows,
            "texts_bytes": texts_bytes,
            "first": run[0].first,
            "last": run[-1].last,
        }
        template = run[0].model_copy(update=fields)
        return (store_file(store, revision.name, path, template),)


def _write(
    path: Path, kept: Iterator[pa.RecordBatch], feature_type: FeatureType
) -> tuple[int, int]:
    """Write the rows. Returns how many, and the bytes of their ids and payloads in memory."""
    rows = texts_bytes = 0
    with segment_writer(path, feature_type) as writer:
        for batch in kept:
            writer.write_batch(batch)
            rows += batch.num_rows
            texts_bytes += batch_texts_bytes(batch)
    return rows, texts_bytes


def _kept_batches(
    store: ObjectStore, name: str, run: tuple[Segment, ...], keeps_removals: bool
) -> Iterator[pa.RecordBatch]:
    """Rows to keep. Only ids are in memory; everything else is streamed."""
    ids = [_ids(store, name, segment) for segment in run]
    last = _last_of_each_id(pa.concat_arrays(ids))
    start = 0
    for segment in run:
        for batch in batches(store, name, segment):
            keep = pa.array(last[start : start + batch.num_rows])
            start += batch.num_rows
            if not keeps_removals:
                keep = pc.and_(keep, pc.invert(batch.column("deleted")))
            filtered = batch.filter(keep)
            if filtered.num_rows:
                yield filtered


def _ids(store: ObjectStore, name: str, segment: Segment) -> pa.StringArray:
    found = [batch.column("id") for batch in batches(store, name, segment, ["id"])]
    return pa.concat_arrays(found)


def _last_of_each_id(ids: pa.StringArray) -> np.ndarray:
    """A bool for each row: whether no later one has the same id."""
    table = pa.table({"id": ids, "row": pa.array(np.arange(len(ids)))})
    last = table.group_by("id").aggregate([("row", "max")]).column("row_max").to_numpy()
    keep = np.zeros(len(ids), bool)
    keep[last] = True
    return keep
