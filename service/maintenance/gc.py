"""Garbage collection: one replica at a time removes what no row, job or user needs.

Every task reads what there is to do, does some of it, and can be interrupted anywhere: the next round does the
rest. The lease saves work; two collectors at a time do no harm.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.modality import NAME_PATTERN
from service.context import Context
from service.database.queries import maintenance
from service.database.queries.maintenance import Kind
from service.errors import DatabaseUnavailable, StaleDatabase
from service.launchers.port import LauncherUnavailable
from service.loops import Lease, PeriodicLoop
from service.maintenance.gc_tasks import (
    remove_all,
    sweep_deleted_datasets,
    sweep_deleted_models,
    sweep_events,
    sweep_jobs,
    sweep_learned_datasets,
    sweep_observations,
    sweep_preflights,
    sweep_responses,
    sweep_uploads,
)
from service.stale_database import check_not_lost

logger = logging.getLogger(__name__)

GCTask = Callable[[Context], None]

_ROUNDS_BETWEEN_RARE_TASKS = 60
_LEASE = timedelta(minutes=5)
_OUTAGES = (StaleDatabase, DatabaseUnavailable, LauncherUnavailable, StorageUnavailable)
# How long a folder that no row names is kept: the database may be the wrong one, or an old dump.
ORPHAN_GRACE = timedelta(days=1)
_BATCH = 500


@dataclass(frozen=True)
class _Root:
    """A folder whose subfolders belong to one row each."""

    folder: str
    kind: Kind
    name: re.Pattern[str]
    may_have_orphans: bool = True


# Subfolders with other names are never touched.
ROOTS = (
    _Root("datasets/", "datasets", re.compile(r"^ds-[0-9a-f]{12}\Z")),
    _Root("runs/", "jobs", re.compile(r"^job-[0-9a-f]{12}\Z")),
    _Root("runs/", "preflights", re.compile(r"^pf-[0-9a-f]{12}\Z")),
    _Root("uploads/", "uploads", re.compile(r"^up-[0-9a-f]{12}\Z")),
    # A model without a row may be all that is left of someone's work, so it is never removed.
    _Root("models/", "models", re.compile(NAME_PATTERN), may_have_orphans=False),
)


class GarbageCollector(PeriodicLoop):
    """Runs all tasks once a minute, while this replica holds the lease."""

    name = "gc"
    pause_seconds = 60.0
    # A task may delete thousands of objects.
    stale_seconds = 1200.0

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        self._lease = Lease(context, self.name, _LEASE)
        self._rounds = 0

    def step(self, stop: threading.Event) -> float:
        """See PeriodicLoop."""
        self.sweep(stop.is_set)
        return self.pause_seconds

    def sweep(self, is_stopping: Callable[[], bool] = lambda: False) -> None:
        """Run one round, unless another replica holds the lease. Errors are logged."""
        is_rare = self._rounds % _ROUNDS_BETWEEN_RARE_TASKS == 0
        for task in (*GC_TASKS, *(RARE_GC_TASKS if is_rare else ())):
            if is_stopping() or not self._run_task(task):
                return
            self.beat()
        self._rounds += 1

    def _run_task(self, task: GCTask) -> bool:
        """Run one task; an error does not reach the others. False if another replica holds the lease."""
        try:
            if not self._lease.acquire():
                return False
            task(self._context)
        except _OUTAGES as error:
            logger.warning("%s failed: %s", task.__name__, error)
        except Exception:
            logger.exception("%s failed", task.__name__)
        return True


def sweep_orphans(context: Context) -> None:
    """Remove folders of rows that are marked swept, and orphans: folders that no row has named for a day.

    The first kind is left by a process that died between the mark and the removal, and by an attempt that wrote
    after its end. Raises StaleDatabase: with a lost database, every folder would be an orphan.
    """
    check_not_lost(context)
    for root in ROOTS:
        names = [name for name in context.store.folders(root.folder) if root.name.match(name)]
        unknown: set[str] = set()
        for batch in _batches(names):
            unknown |= _sweep_batch(context, root, batch)
        if root.may_have_orphans:
            _watch_orphans(context, root, unknown)


def _sweep_batch(context: Context, root: _Root, names: list[str]) -> set[str]:
    """Remove folders of rows that are marked swept; return those that no row names."""
    with context.database.read() as connection:
        known = maintenance.known(connection, root.kind, names)
        swept = maintenance.swept(connection, root.kind, names)
    for name in sorted(swept):
        remove_all(context.store, f"{root.folder}{name}/")
    return set(names) - known


def _watch_orphans(context: Context, root: _Root, unknown: set[str]) -> None:
    """Note new orphans, remove those past their grace period, forget those that a row names again."""
    now = context.clock()
    with context.database.write() as connection:
        since = {
            folder: seen_at
            for folder, seen_at in maintenance.orphans_since(connection, root.folder).items()
            if root.name.match(folder.removeprefix(root.folder))
        }
        found = {f"{root.folder}{name}" for name in unknown}
        maintenance.note_orphans(connection, sorted(found - since.keys()), now)
        maintenance.forget_orphans(connection, since.keys() - found)
    for folder in sorted(found & since.keys()):
        if now - since[folder] >= ORPHAN_GRACE:
            logger.warning("removing %s: no row has named it for a day", folder)
            remove_all(context.store, f"{folder}/")


def _batches(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]


GC_TASKS: Sequence[GCTask] = (
    sweep_learned_datasets,
    sweep_jobs,
    sweep_deleted_datasets,
    sweep_deleted_models,
    sweep_uploads,
    sweep_responses,
    sweep_events,
    sweep_preflights,
    sweep_observations,
)
# Listing every folder of the store costs more than all other tasks together.
RARE_GC_TASKS: Sequence[GCTask] = (sweep_orphans,)
