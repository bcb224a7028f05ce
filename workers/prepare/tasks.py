"""The functions that run on worker processes of the cluster.

Files of users are read in bounded children. Each worker process keeps a warm one ahead of need.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.contract.prepare import DatasetReport, PrepareRequest
from cmcl.storage import layout
from cmcl.storage.documents import read_document, write_document
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from cmcl.storage.uris import open_store
from cmcl.storage.versions import digests_of_file
from workers.files.columns import DIGEST_BYTES, repeated_ids
from workers.files.shards import describe_shard, download, write_shard
from workers.prepare.features import FeatureFile, read_features
from workers.prepare.plan import plan
from workers.prepare.progress import Watch
from workers.prepare.rows import encode_unit
from workers.prepare.units import DatasetContext, DatasetPlan, Prepared, UnitRecord, UnitTask
from workers.sandbox.child import Child, ChildLimits, ChildPool
from workers.sandbox.child_process import give_way_to_queries

_SECONDS_BETWEEN_REPORTS = 0.5
# For one file, or the rows of a unit, to be read: a read that hangs must not block others.
_FILE_SECONDS = 3600
# What children import before their first task: it takes longer than a small dataset.
_PRELOADED = ("workers.prepare.features", "workers.prepare.rows")
# By the memory of their children.
_pools: dict[int, ChildPool] = {}


@dataclass(frozen=True)
class Repeated:
    """A row whose id an earlier row of another file has. `index`, `first_index`: of the tasks of both files."""

    index: int
    row: int
    first_index: int
    first_row: int


def warm_up(file_memory: int) -> None:
    """Start what the first unit of this worker process needs. `file_memory`: as in DatasetContext.

    Sleeps a little, so that Ray starts another process for the next call.
    """
    give_way_to_queries()
    children(file_memory)
    time.sleep(0.5)


def children(memory: int) -> ChildPool:
    """Return the pool of children of this process. `memory`: of each child, in bytes."""
    if memory not in _pools:
        limits = ChildLimits(memory=memory, seconds=_FILE_SECONDS)
        _pools[memory] = ChildPool(limits, _PRELOADED)
    return _pools[memory]


def end_children() -> None:
    """End all children of this process; the next call of `children` starts others."""
    while _pools:
        _pools.popitem()[1].close()


@contextmanager
def _watched_child(context: DatasetContext) -> Iterator[tuple[Child, Watch]]:
    """Lend a child that serves the owner, until the request is removed."""
    with (
        children(context.file_memory).borrow(context.owner) as child,
        Watch(context, child) as watch,
    ):
        yield child, watch


def plan_dataset(context: DatasetContext) -> DatasetPlan:
    """Plan a dataset. Raises InvalidDataset, InvalidUri, StorageUnavailable, Cancelled."""
    with _watched_child(context) as (child, _):
        return plan(child, context.source)


def prepare_unit(context: DatasetContext, task: UnitTask) -> Iterator[int | UnitRecord]:
    """Prepare one unit, unless it is done already. Yields how many of its rows are done, now and then, and its record.

    The shards of a unit are written to the store, then its record. After a crash, at most the units in work are
    repeated. Encoded items are also found by their digest: in another dataset, and after a retry.

    Raises InvalidDataset, InvalidUri, StorageUnavailable, EncoderLost, EncoderMismatch, EncoderUnusable, Cancelled.
    """
    with _watched_child(context) as (child, watch):
        counts = unit_record(context, task, child, watch.check)
        reported_at = time.monotonic()
        with closing(counts):
            while True:
                try:
                    rows = next(counts)
                except StopIteration as end:
                    record: UnitRecord = end.value
                    break
                if time.monotonic() - reported_at >= _SECONDS_BETWEEN_REPORTS:
                    reported_at = time.monotonic()
                    yield rows
    yield record


def unit_record(
    context: DatasetContext, task: UnitTask, child: Child, check: Callable[[], None]
) -> Generator[int, None, UnitRecord]:
    """Return the record of a unit, which is prepared unless it is done. Yields numbers of its rows that are done.

    `check` raises after a cancellation. Otherwise raises as `prepare_unit`.
    """
    store, digest = open_store(context.store), task.digest(context)
    key = layout.preparation_unit(context.dataset, context.request, digest)
    try:
        done = retry_unavailable(partial(read_document, store, key, UnitRecord))
        return done.model_copy(update={"encoded": 0})
    except (ObjectNotFound, InvalidVersion):
        pass  # It is not done, or another release has done it; a damaged record counts as none.
    if task.raw is None:
        record = read_features(child, _feature_file(context, task, digest))
    else:
        record = yield from encode_unit(context, task, task.raw, child, check)
    check()
    retry_unavailable(partial(write_document, store, key, record))
    return record


def _feature_file(context: DatasetContext, task: UnitTask, digest: str) -> FeatureFile:
    source, held_out = context.source, task.file >= context.files_to_train
    ref = source.files[task.file]
    stored = source.locations.get(ref.uri)
    named = len(source.files) - context.files_to_train
    return FeatureFile(
        store=context.store,
        dataset=context.dataset,
        ref=ref,
        address=stored or ref.uri,
        allowed=None if stored else source.allowed_prefixes,
        sides=source.sides,
        is_held_out=held_out,
        share=context.share,
        index=task.file - context.files_to_train if held_out else task.file,
        # Evaluation shards that the user named have the first numbers.
        evaluation_index=named + task.file,
        left_out=task.left_out if context.leaves_out else None,
        ids_key=layout.preparation_ids(context.dataset, context.request, digest),
    )


def find_repeated(context: DatasetContext, tasks: list[UnitTask]) -> list[Repeated]:
    """Find ids that several files of features have, in the order of files and rows."""
    store = open_store(context.store)
    digests, starts = bytearray(), []
    for task in tasks:
        starts.append(len(digests) // DIGEST_BYTES)
        key = layout.preparation_ids(context.dataset, context.request, task.digest(context))
        digests += read_ids(store, key)

    def place(row: int) -> tuple[int, int]:
        """Return the index of the task of a row, and the number of the row in its file."""
        at = bisect_right(starts, row) - 1
        return tasks[at].index, row - starts[at]

    found_K2 = repeated_ids(np.frombuffer(digests, np.uint64))
    return [Repeated(*place(row), *place(first)) for row, first in found_K2.tolist()]


def read_ids(store: ObjectStore, key: str) -> bytes:
    """Return the digests of the ids of a file. Raises ObjectNotFound, InvalidVersion for a damaged object."""
    data = store.read(key)
    if blake3(key.encode() + data[32:]).digest() != data[:32]:
        raise InvalidVersion(f"{store.uri}/{key} is not what was written; retry the job")
    return data[32:]


def join_evaluation(
    context: DatasetContext, group: tuple[int, tuple[Shard, ...]]
) -> Iterator[Shard]:
    """Write the rows of some held-out shards as one shard into the dataset's folder. `group`: its number, and they."""
    index, shards = group
    store = open_store(context.store)
    with TemporaryDirectory(prefix="cmcl-join-") as folder:
        path, part = Path(folder) / "joined", Path(folder) / "part"
        tables: list[pa.Table] = []
        for shard in shards:
            download(shard, shard.uri, part)
            tables.append(pq.read_table(part))
        # Labels are kept if all rows have them.
        columns = [
            name
            for name in tables[0].column_names
            if all(name in table.column_names for table in tables)
        ]
        write_shard(
            path, (batch for table in tables for batch in table.select(columns).to_batches())
        )
        digests = digests_of_file(path)
        key = layout.evaluation_shard(context.dataset, index, digests.sha256)
        store.upload(path, key)
        yield describe_shard(path, f"{store.uri}/{key}", digests)


def dataset_report(store_uri: str, request: PrepareRequest, prepared: Prepared) -> DatasetReport:
    """Predict how the dataset would be learned, for a dry run."""
    # Torch takes seconds to import, and nothing else here needs it.
    from workers.prepare.dry_run import dataset_outlook

    outlook = dataset_outlook(
        open_store(store_uri),
        request.model,
        request.report_version or 0,
        request.spec,
        request.pair,
        prepared.shards,
    )
    return outlook.model_copy(
        update={
            "rows": sum(shard.rows for shard in prepared.shards),
            "evaluation_rows": sum(shard.rows for shard in prepared.held_out),
            "rejected_rows": len(prepared.rejected),
            "rejected": prepared.rejected[:20],
            "encoders": prepared.encoders,
            "refusals": (*prepared.refusals, *outlook.refusals),
            "advice": (*prepared.warnings, *outlook.advice),
        }
    )
