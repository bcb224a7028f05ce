"""The functions that run on worker processes of the cluster. Errors are returned as values.

Files of users are read in bounded children. Each worker process keeps a warm one ahead of need.
"""

import math
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.dataset import RejectedRow, Shard
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import InvalidDataset, InvalidUri, StorageUnavailable
from cmcl.contract.prepare import DatasetReport, PrepareRequest
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from cmcl.storage.versions import digests_of_file
from workers.encoders.port import EncoderMismatch, EncoderUnusable
from workers.files.shards import describe_shard, download, repeated_ids, write_shard
from workers.prepare.encoding import EncoderLost
from workers.prepare.plan import plan
from workers.prepare.progress import Cancelled, Watch
from workers.prepare.raw_rows import Plan
from workers.prepare.units import DatasetContext, UnitRecord, UnitTask, prepare_unit
from workers.sandbox.child import Child, ChildPool
from workers.sandbox.started_process import ChildLimits

R = TypeVar("R")
# `unavailable`: a retry can succeed. `lost`: it can with a new lease of the encoders. `cancelled`: the request was
# removed.
ErrorKind = Literal["invalid", "mismatch", "unusable", "unavailable", "lost", "cancelled"]
_KINDS: dict[type[Exception], ErrorKind] = {
    Cancelled: "cancelled",
    InvalidDataset: "invalid",
    InvalidUri: "invalid",
    EncoderMismatch: "mismatch",
    EncoderUnusable: "unusable",
    EncoderLost: "lost",
    StorageUnavailable: "unavailable",
}

_SECONDS_BETWEEN_REPORTS = 0.5
# For one file, or the rows of a unit, to be read: a read that hangs must not block others.
_FILE_SECONDS = 3600
# What children import before their first task: it takes longer than a small dataset.
_PRELOADED = (
    *("workers.prepare.features", "workers.prepare.plan"),
    *("workers.prepare.spool", "workers.prepare.unit_reader"),
)
# By the memory of their children.
_pools: dict[int, ChildPool] = {}


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """The return value of a function, or its error."""

    index: int = 0
    value: R | None = None
    error: ErrorKind | None = None
    message: str = ""

    def result(self) -> R:
        """Return the value, or raise the error."""
        match self.error:
            case "invalid":
                raise InvalidDataset(self.message)
            case "mismatch":
                raise EncoderMismatch(self.message)
            case "unusable":
                raise EncoderUnusable(self.message)
            case "unavailable":
                raise StorageUnavailable(self.message)
            case "lost":
                raise EncoderLost(self.message)
            case "cancelled":
                raise Cancelled(self.message)
        return cast("R", self.value)


@dataclass(frozen=True)
class RowsDone:
    """How many rows of a unit in work are done. `index`: of its task."""

    index: int
    rows: int


@dataclass(frozen=True)
class Prepared:
    """The results of all units of a dataset, or the `refusals`: reasons why it cannot be prepared.

    `warnings`: sentences about rows that are used.

    `held_out`: first the shards of files that the user held out, then those of a share.
    """

    shards: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    rejected: tuple[RejectedRow, ...]
    encoders: dict[str, EncoderIdentity]
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Repeated:
    """A row whose id an earlier row of another file has. `index`, `first_index`: of the tasks of both files."""

    index: int
    row: int
    first_index: int
    first_row: int


def warm_up(file_memory: int) -> None:
    """Import and start what the first unit of this worker process needs. `file_memory`: as in DatasetContext.

    Sleeps a little, so that Ray starts another process for the next call.
    """
    from workers.prepare import raw_unit

    children(file_memory)
    time.sleep(0.5 if raw_unit else 0)


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


def plan_dataset(context: DatasetContext) -> Outcome[Plan]:
    """Plan a dataset."""
    with _guarded(context, 0) as work:
        work.outcome = Outcome(0, plan(work.child, context.source))
    return work.outcome


def carry_out(
    context: DatasetContext, task: UnitTask
) -> Generator[RowsDone | Outcome[UnitRecord], None, None]:
    """Prepare one unit. Yields how many of its rows are done, now and then, and at the end the outcome."""
    with _guarded(context, task.index) as work:
        counts = prepare_unit(context, task, work.child, work.check)
        work.outcome = Outcome(task.index, (yield from _reported(task.index, counts)))
    yield work.outcome


def _reported(index: int, counts: Generator[int, None, R]) -> Generator[RowsDone, None, R]:
    reported_at = time.monotonic()
    with closing(counts):
        while True:
            try:
                rows = next(counts)
            except StopIteration as end:
                return cast("R", end.value)
            if time.monotonic() - reported_at >= _SECONDS_BETWEEN_REPORTS:
                reported_at = time.monotonic()
                yield RowsDone(index, rows)


def find_repeated(context: DatasetContext, tasks: list[UnitTask]) -> Outcome[list[Repeated]]:
    """Find ids that several files of features have, in the order of files and rows."""
    return _attempted(0, lambda: _repeated(context, tasks))


def _repeated(context: DatasetContext, tasks: list[UnitTask]) -> list[Repeated]:
    store = open_store(context.store)
    ids, rows = [], []
    for task in tasks:
        key = layout.preparation_ids(context.dataset, context.request, task.digest(context))
        digests = np.frombuffer(store.read(key), np.uint64).reshape(-1, 2)
        is_kept = np.asarray(digests.any(axis=1))
        is_kept[list(task.left_out)] = False
        ids.append(digests[is_kept])
        rows.append(np.flatnonzero(is_kept))
    task_N = np.repeat([task.index for task in tasks], [len(each) for each in rows])
    row_N = np.concatenate(rows)
    return [
        Repeated(int(task_N[again]), int(row_N[again]), int(task_N[one]), int(row_N[one]))
        for again, one in repeated_ids(np.concatenate(ids)).tolist()
    ]


def join_evaluation(
    context: DatasetContext, group: tuple[int, tuple[Shard, ...]]
) -> Iterator[Outcome[Shard]]:
    """Write the rows of some held-out shards as one shard into the dataset's folder. Yields the outcome."""
    index, shards = group
    yield _attempted(index, lambda: _joined(context, index, shards))


def _joined(context: DatasetContext, index: int, shards: tuple[Shard, ...]) -> Shard:
    store = open_store(context.store)
    with TemporaryDirectory(prefix="cmcl-join-") as folder:
        path, part = Path(folder) / "joined", Path(folder) / "part"
        tables = []
        for shard in shards:
            download(shard, shard.uri, part)
            tables.append(pq.read_table(part))
        # Labels are kept if all rows have them.
        columns = [name for name in tables[0].column_names if _in_all(name, tables)]
        write_shard(
            path, (batch for table in tables for batch in table.select(columns).to_batches())
        )
        digests = digests_of_file(path)
        key = layout.evaluation_shard(context.dataset, index, digests.sha256)
        store.upload(path, key)
        return describe_shard(path, f"{store.uri}/{key}", digests)


def _in_all(name: str, tables: list[pa.Table]) -> bool:
    return all(name in table.column_names for table in tables)


def dataset_report(
    store_uri: str, request: PrepareRequest, prepared: Prepared
) -> Outcome[DatasetReport]:
    """Predict how the dataset would be learned, for a dry run."""
    return _attempted(0, lambda: _report(open_store(store_uri), request, prepared))


def _report(store: ObjectStore, request: PrepareRequest, prepared: Prepared) -> DatasetReport:
    # Torch takes seconds to import, and nothing else here needs it.
    from workers.prepare.dry_run import dataset_outlook

    version = request.report_version or 0
    outlook = dataset_outlook(
        store, request.model, version, request.spec, request.pair, prepared.shards
    )
    known = {
        "rows": sum(shard.rows for shard in prepared.shards),
        "evaluation_rows": sum(shard.rows for shard in prepared.held_out),
        "rejected_rows": len(prepared.rejected),
        "rejected": prepared.rejected[:20],
        "encoders": prepared.encoders,
        "refusals": (*prepared.refusals, *outlook.refusals),
        "advice": (*prepared.warnings, *outlook.advice),
    }
    return DatasetReport.model_validate({**_finite(asdict(outlook)), **known})


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, in nested mappings and sequences."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _attempted(index: int, function: Callable[[], R]) -> Outcome[R]:
    """Call a function that reads no file of a user."""
    try:
        return Outcome(index, function())
    except Exception as error:  # noqa: BLE001 - the driver decides what it means
        kind, message = _described(error)
        return Outcome(index, error=kind, message=message)


@dataclass
class _Guarded:
    """A function in work, and its outcome. `check` raises Cancelled once the request was removed."""

    child: Child
    check: Callable[[], None]
    outcome: Outcome[Any] = field(default_factory=Outcome)


@contextmanager
def _guarded(context: DatasetContext, index: int) -> Iterator[_Guarded]:
    """Lend a child that serves the owner. An error in the block becomes its outcome."""
    with (
        children(context.file_memory).borrow(context.owner) as child,
        Watch(context, child) as watch,
    ):
        work = _Guarded(child, watch.check)
        try:
            yield work
        except Exception as error:  # noqa: BLE001 - the driver decides what it means
            kind, message = _described(Cancelled() if watch.is_cancelled else error)
            work.outcome = Outcome(index, error=kind, message=message)


def _described(error: Exception) -> tuple[ErrorKind, str]:
    for known, kind in _KINDS.items():
        if isinstance(error, known):
            return kind, str(error)
    # A bug: the log of this worker has its traceback.
    traceback.print_exception(error)
    return "unavailable", f"internal error ({type(error).__name__}); see the log of the worker"
