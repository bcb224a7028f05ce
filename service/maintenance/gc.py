"""Folders that should not be there: of what was given up, and of what no row speaks of.

A process that died between giving up and removing leaves the first kind, and an attempt that wrote
after its end; they go at once. The second kind may be somebody's mistake (another database, an old
backup), so it is watched for a day. Folders with names that are none of our ids are never touched.
"""

import logging
import re
import threading
import uuid
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


_PAUSE_SECONDS = 60.0

_ROUNDS_BETWEEN_RARE_DUTIES = 60

_LEASE = timedelta(minutes=5)

_NAME = "gc"

_OUTAGES = (StaleDatabase, DatabaseUnavailable, LauncherUnavailable, StorageUnavailable)

WATCHED = timedelta(days=1)
_BATCH = 500


@dataclass(frozen=True)
class _Root:
    """A folder of folders, each of which belongs to a row."""

    folder: str
    kind: Kind
    name: re.Pattern[str]
    may_have_orphans: bool = True


ROOTS = (
    _Root("datasets/", "datasets", re.compile(r"^ds-[0-9a-f]{12}\Z")),
    _Root("runs/", "jobs", re.compile(r"^job-[0-9a-f]{12}\Z")),
    _Root("runs/", "preflights", re.compile(r"^pf-[0-9a-f]{12}\Z")),
    _Root("uploads/", "uploads", re.compile(r"^up-[0-9a-f]{12}\Z")),
    # A model that no row knows may be all that is left of somebody's work: it is not ours to remove.
    _Root("models/", "models", re.compile(NAME_PATTERN), may_have_orphans=False),
)


def sweep_orphans(context: Context) -> None:
    """One look at each folder of the store. Raises StaleDatabase: then no row speaks of anything."""
    check_not_lost(context)
    for root in ROOTS:
        names = [name for name in context.store.folders(root.folder) if root.name.match(name)]
        unknown: set[str] = set()
        for batch in _batches(names):
            unknown |= _sweep_batch(context, root, batch)
        if root.may_have_orphans:
            _watch_orphans(context, root, unknown)


def _sweep_batch(context: Context, root: _Root, names: list[str]) -> set[str]:
    """Remove what was given up; the folders that no row speaks of."""
    with context.database.read() as connection:
        known = maintenance.known(connection, root.kind, names)
        found = maintenance.swept(connection, root.kind, names)
    for name in sorted(found):
        remove_all(context.store, f"{root.folder}{name}/")
    return set(names) - known


def _watch_orphans(context: Context, root: _Root, unknown: set[str]) -> None:
    """Watch new ones, remove those that were watched long enough, forget those that are none."""
    now = context.clock()
    with context.database.write() as connection:
        since = {
            folder: seen_at
            for folder, seen_at in maintenance.orphans_since(connection, root.folder).items()
            if root.name.match(folder.removeprefix(root.folder))
        }
        there = {f"{root.folder}{name}" for name in unknown}
        maintenance.note_orphans(connection, sorted(there - since.keys()), now)
        maintenance.forget_orphans(connection, since.keys() - there)
    for folder in sorted(there & since.keys()):
        if now - since[folder] >= WATCHED:
            logger.warning("removing %s: no row has spoken of it for a day", folder)
            remove_all(context.store, f"{folder}/")


def _batches(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]


GCTask = Callable[[Context], None]

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
# A look at every folder of the store costs more than the others together.
RARE_GC_TASKS: Sequence[GCTask] = (sweep_orphans,)


class GarbageCollector:
    """Rounds of all duties, while the lease is ours."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._name = uuid.uuid4().hex
        self._rounds = 0

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set."""
        while not stop.wait(_PAUSE_SECONDS):
            self.sweep(stop.is_set)

    def sweep(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """One round, unless another service is at it. Never raises: the next one may do better."""
        is_rare = self._rounds % _ROUNDS_BETWEEN_RARE_DUTIES == 0
        for duty in (*GC_TASKS, *(RARE_GC_TASKS if is_rare else ())):
            if is_over() or not self._do(duty):
                return
        self._rounds += 1

    def _do(self, duty: GCTask) -> bool:
        """One duty; its errors stay its own. False if another service is at it."""
        try:
            if not self._is_ours():
                return False
            duty(self._context)
        except _OUTAGES as error:
            logger.warning("%s did not get on: %s", duty.__name__, error)
        except Exception:
            # If this ended the thread, nothing would be removed for the rest of its life.
            logger.exception("%s did not get on", duty.__name__)
        return True

    def _is_ours(self) -> bool:
        now = self._context.clock()
        return self._context.database.settle(
            lambda connection: maintenance.claim_lease(
                connection, _NAME, self._name, now, now + _LEASE
            )
        )
