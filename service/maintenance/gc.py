"""Garbage collection: one instance at a time removes what no row, job or user needs.

Rows first: tasks mark what can no longer be asked for. Then the store is listed, and what no row and no manifest needs is
removed: at once if a row is known for it, and after a day if nothing names it, since the database may be the wrong one, or
an old dump, and an attempt writes blobs before the manifest that names them. The store is listed before the rows are
read, so that what is written later is not judged.

Objects have no time. The time at which each is first found without a name is stored, by the clock of this service, and
deleted if it is named again. A day later it is doomed, then removed.

Every task reads what there is to do, does some of it, and can be interrupted anywhere: the next round does the rest. The
lease saves work; two collectors at a time do no harm.
"""

import logging
import re
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from sqlalchemy import Connection

from cmcl.contract.errors import InvalidVersion, ObjectNotFound, StorageError, StorageUnavailable
from cmcl.contract.job import submission_id
from cmcl.contract.modality import NAME_PATTERN
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.running import forget_running, read_running
from cmcl.storage.versions import read_candidate, read_version
from service.context import Context
from service.core.errors import DatabaseUnavailable, StaleDatabase
from service.core.loops import PeriodicLoop
from service.database.queries import (
    deliveries,
    events,
    job_queue,
    maintenance,
    sessions,
    uploads,
)
from service.database.queries.maintenance import Needs
from service.database.stale import check_not_stale
from service.datasets.uploads import EXPIRY_HOURS
from service.jobs.leases import Lease
from service.launchers.port import LauncherUnavailable

logger = logging.getLogger(__name__)

GCTask = Callable[[Context], None]

_ROUNDS_BETWEEN_RARE_TASKS = 60
_LEASE = timedelta(minutes=5)
_OUTAGES = (StaleDatabase, DatabaseUnavailable, LauncherUnavailable, StorageUnavailable)


class GarbageCollector(PeriodicLoop):
    """Runs all tasks once a minute, while this instance holds the lease."""

    name = "gc"
    pause_seconds = 60.0
    # A task may delete thousands of objects.
    stale_seconds = 1200.0

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        self.lease = Lease(context, self.name, _LEASE)
        self._rounds = 0

    def release(self) -> None:
        """See Loop."""
        self.lease.release()

    def step(self, stop: threading.Event) -> float:
        """See PeriodicLoop."""
        self.sweep(stop.is_set)
        return self.pause_seconds

    def sweep(self, is_stopping: Callable[[], bool] = lambda: False) -> None:
        """Run one round, unless another instance holds the lease. Errors are logged."""
        is_rare = self._rounds % _ROUNDS_BETWEEN_RARE_TASKS == 0
        for task in (*GC_TASKS, *(RARE_GC_TASKS if is_rare else ())):
            if is_stopping() or not self._run_task(task):
                return
            self.beat()
        self._rounds += 1

    def _run_task(self, task: GCTask) -> bool:
        """Run one task; an error does not reach the others. False if another instance holds the lease."""
        try:
            if not self.lease.acquire():
                return False
            task(self._context)
        except _OUTAGES as error:
            logger.warning("%s failed: %s", task.__name__, error)
        except Exception:
            logger.exception("%s failed", task.__name__)
        return True


_AT_ONCE = 100
_ROWS_AT_ONCE = 1000
_MOST_BATCHES = 20
# Longer than any transaction that read the model before it was deleted.
GRACE = timedelta(hours=1)
_AFTER_A_SESSION = timedelta(days=7)
# Files of a job's attempts after it ended: logs, and checkpoints for a retry.
_RUNS_KEPT_DAYS = 7
# How long the response to an Idempotency-Key is kept: longer than clients retry.
_IDEMPOTENCY_HOURS = 24
# A reader of events that was away for a quarter of a year starts again.
EVENTS_KEPT_DAYS = 90
# How long a folder or blob that nothing names is kept.
ORPHAN_GRACE = timedelta(days=1)
# Features of items after they were encoded: equal items in other datasets of the owner are not encoded again.
_ENCODED_KEPT = timedelta(days=7)
# Parts of folders that are not needed as long as the rest.
_OF_TRAINING = re.compile(r"datasets/[^/]+/(training-|preparation/)")
_CHECKPOINTS = re.compile(r"runs/[^/]+/a[0-9]+/checkpoints/")


def sweep_jobs(context: Context) -> None:
    """Give up jobs past their retention: they can no longer be retried.

    What the cluster keeps of their attempts goes first, because their rows list it.
    """
    with context.database.read() as connection:
        before = context.clock() - timedelta(days=_RUNS_KEPT_DAYS)
        ended = maintenance.ended_jobs(connection, before, _AT_ONCE)
    for job in ended:
        for attempt in range(1, job.attempt + 1):
            context.launcher.forget(submission_id(job.id, attempt))
        with context.database.write() as connection:
            maintenance.mark_job_swept(connection, job, context.clock())


def sweep_models(context: Context) -> None:
    """Give up deleted models."""
    now = context.clock()
    with context.database.write() as connection:
        maintenance.mark_models_swept(connection, now - GRACE, now)


def sweep_unlearned(context: Context) -> None:
    """Give up datasets that were unlearned once every version that has learned them is retired, and retired versions
    from before a row of theirs was erased.

    The files of these versions are given up as well: their heads and moments hold the dataset, and no later version is
    measured against them. Their manifests stay.
    """
    with context.database.write() as connection:
        stale = maintenance.versions_with_erased_rows(connection)
        maintenance.mark_versions_swept(connection, stale, context.clock())
    with context.database.read() as connection:
        found = maintenance.unlearned_datasets(connection)
    for dataset in found:
        with context.database.read() as connection:
            versions = maintenance.versions_with(connection, dataset)
        if any(version.retired_at is None for version in versions):
            continue
        left = [version for version in versions if version.swept_at is None]
        with context.database.write() as connection:
            maintenance.mark_versions_swept(connection, left, context.clock())
            # Not before a round that finds nothing left: a branch that is being created may copy such a version.
            if not left:
                maintenance.mark_dataset_swept(connection, dataset, context.clock())


def sweep_running(context: Context) -> None:
    """Remove what attempts show that do not run: of processes that were slow to end, and of interrupted steps."""
    shown = read_running(context.store)
    with context.database.read() as connection:
        running = maintenance.running_attempts(connection)
    for attempt in shown.keys() - running:
        forget_running(context.store, attempt)


def sweep_uploads(context: Context) -> None:
    """Abort expired uploads that no dataset needs, then remove their objects, then their rows."""
    before = context.clock() - timedelta(hours=EXPIRY_HOURS)
    with context.database.read() as connection:
        expired = uploads.expired(connection, before, _AT_ONCE)
    for upload in expired:
        _abort_upload(context, upload)
    with context.database.read() as connection:
        aborted = uploads.aborted(connection, _AT_ONCE)
    for upload in aborted:
        if remove_all(context.store, layout.upload_prefix(upload)):
            with context.database.write() as connection:
                uploads.remove(connection, upload)


def _abort_upload(context: Context, upload: str) -> None:
    """Abort it, unless a dataset has named it since it was found."""
    with context.database.write() as connection:
        uploads.lock(connection, upload)
        if not uploads.is_needed(connection, upload):
            uploads.abort(connection, upload)


def sweep_responses(context: Context) -> None:
    """Remove stored responses to idempotency keys past their retention."""
    before = context.clock() - timedelta(hours=_IDEMPOTENCY_HOURS)
    _in_batches(
        context, lambda connection: maintenance.forget_responses(connection, before, _ROWS_AT_ONCE)
    )


def sweep_sessions(context: Context) -> None:
    """Remove sessions of the page some time after they expired."""
    before = context.clock() - _AFTER_A_SESSION
    _in_batches(
        context, lambda connection: sessions.forget_before(connection, before, _ROWS_AT_ONCE)
    )


def sweep_events(context: Context) -> None:
    """Remove events and deliveries past their retention."""
    before = context.clock() - timedelta(days=EVENTS_KEPT_DAYS)
    _in_batches(
        context, lambda connection: deliveries.forget_before(connection, before, _ROWS_AT_ONCE)
    )
    _in_batches(context, lambda connection: events.forget_before(connection, before, _ROWS_AT_ONCE))


def sweep_preparations(context: Context) -> None:
    """Remove requests of jobs that are not being prepared: left by a process that died between the two.

    Listed first: a request is written after its job began to be prepared.
    """
    prefix = layout.preparations()
    keys = list(context.store.keys(prefix))
    with context.database.read() as connection:
        current = job_queue.datasets_of_open(connection)
    for key in keys:
        if key.removeprefix(prefix).removesuffix(".json") not in current:
            context.store.delete(key)


def _in_batches(context: Context, forget: Callable[[Connection], int]) -> None:
    """Remove rows in short transactions, so that no other writer waits for long."""
    for _ in range(_MOST_BATCHES):
        with context.database.write() as connection:
            forgotten = forget(connection)
        if forgotten < _ROWS_AT_ONCE:
            return


def sweep_datasets(context: Context) -> None:
    """Remove files of datasets."""

    def part_of(key: str, folder: str) -> str:
        match = _OF_TRAINING.match(key)
        return match.group() if match else folder

    _sweep_folders(context, "datasets/", r"ds-[0-9a-f]{12}", maintenance.needs_of_datasets, part_of)


def sweep_runs(context: Context) -> None:
    """Remove files of attempts."""

    def part_of(key: str, folder: str) -> str:
        match = _CHECKPOINTS.match(key)
        return match.group() if match else folder

    _sweep_folders(context, "runs/", r"job-[0-9a-f]{12}", maintenance.needs_of_jobs, part_of)


def sweep_folders_of_models(context: Context) -> None:
    """Remove manifests of deleted models. A model without a row may be all that is left of someone's work."""
    pattern, needs = NAME_PATTERN.strip("^$"), maintenance.needs_of_models
    _sweep_folders(context, layout.models(), pattern, needs, has_orphans=False)


def sweep_folders_of_uploads(context: Context) -> None:
    """Remove files of uploads without a row."""
    _sweep_folders(context, "uploads/", r"up-[0-9a-f]{12}", maintenance.needs_of_uploads)


def _sweep_folders(
    context: Context,
    root: str,
    pattern: str,
    needs_of: Callable[[Connection], Needs],
    part_of: Callable[[str, str], str] = lambda _, folder: folder,
    *,
    has_orphans: bool = True,
) -> None:
    """Remove what the rows do not need of the folders under a root, whose names match the pattern.

    `part_of`: the prefix of the part that a key belongs to, by key and folder. Raises StaleDatabase: with a lost database, every
    folder would be an orphan.
    """
    check_not_stale(context.store, context.database)
    names = re.compile(rf"{re.escape(root)}({pattern})/")
    parts: dict[str, str] = {}
    for key in context.store.keys(root):
        if (match := names.match(key)) is not None:
            parts[part_of(key, match.group())] = match.group(1)
    with context.database.read() as connection:
        needs = needs_of(connection)
    for part, name in parts.items():
        assert part.startswith(root)
        if name in needs.known and part not in needs.prefixes:
            remove_all(context.store, part)
    if has_orphans:
        unknown = {f"{root}{name}" for name in parts.values() if name not in needs.known}
        doomed = _doomed(context, root, unknown)
        for folder in doomed:
            logger.warning("removing %s: no row has named it for a day", folder)
        _forget(context, [each for each in doomed if remove_all(context.store, f"{each}/")])


def _doomed(context: Context, root: str, unnamed: set[str]) -> list[str]:
    """Those folders or blobs under a root that nothing has named for a day."""
    now = context.clock()
    with context.database.write() as connection:
        return maintenance.update_orphans(connection, root, unnamed, now - ORPHAN_GRACE, now)


def _forget(context: Context, removed: Sequence[str]) -> None:
    with context.database.write() as connection:
        maintenance.forget_removed(connection, removed)


def sweep_blobs(context: Context) -> None:
    """Remove blobs that no manifest has named for a day.

    Roots are the versions with files, also those that only the bucket knows, and candidates that may be published.
    Blobs are listed first, so that what is written later is not judged. A candidate names blobs of its parent, which is
    a root, and others that its attempt has written. Before it is published, these are rescued (`publish.decide`): a blob
    may have been written again when it was about to be removed. Raises StaleDatabase as `_sweep_folders` does.
    """
    check_not_stale(context.store, context.database)
    found = set(context.store.keys(layout.blobs()))
    named = {layout.blob(sha256) for sha256 in _named(context)}
    doomed = _doomed(context, layout.blobs(), found - named)
    for key in doomed:
        context.store.delete(key)
    _forget(context, doomed)


def _named(context: Context) -> set[str]:
    """Digests of all blobs that something names."""
    with context.database.read() as connection:
        named = maintenance.named_blobs(connection)
        known = maintenance.known_versions(connection)
        attempts = maintenance.open_attempts(connection)
    stored = filter(None, map(layout.version_of, context.store.keys(layout.models())))
    unknown = [partial(read_version, context.store, *each) for each in stored if each not in known]
    for read in (*unknown, *(partial(read_candidate, context.store, *each) for each in attempts)):
        try:
            named |= read().blobs
        except (ObjectNotFound, InvalidVersion):
            # An attempt that has written none yet, or one that cannot be published.
            continue
    return named


def remove_all(store: ObjectStore, prefix: str) -> bool:
    """Remove every object under a prefix. False if some are left, for a later round."""
    try:
        for key in list(store.keys(prefix)):
            store.delete(key)
    except StorageError as error:
        logger.warning("%s could not be removed; will retry: %s", prefix, error)
        return False
    return True


def sweep_encoded(context: Context) -> None:
    """Remove items that were encoded longer ago than they are kept. Preparation encodes them again."""
    before = (context.clock() - _ENCODED_KEPT).timestamp()
    for key in list(context.store.keys(layout.encoded())):
        if layout.encoded_at(key) <= before:
            context.store.delete(key)


GC_TASKS: Sequence[GCTask] = (
    sweep_jobs,
    sweep_models,
    sweep_running,
    sweep_uploads,
    sweep_responses,
    sweep_sessions,
    sweep_events,
    sweep_preparations,
)

# Listing the store costs more than all other tasks together.
RARE_GC_TASKS: Sequence[GCTask] = (
    sweep_unlearned,
    sweep_datasets,
    sweep_runs,
    sweep_folders_of_models,
    sweep_folders_of_uploads,
    sweep_blobs,
    sweep_encoded,
)
