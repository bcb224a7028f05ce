"""Garbage collection: one replica at a time removes what no row, job or user needs.

Every task reads what there is to do, does some of it, and can be interrupted anywhere: the next round does the
rest. The lease saves work; two collectors at a time do no harm.

What may be asked for again (a failed or rejected job can be retried) is first marked swept in the
database, with the fence of its row, and then removed. What nothing can ask for is removed first.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

from sqlalchemy import Connection

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.job import submission_id
from cmcl.storage import layout
from cmcl.storage.running import forget_running, read_running
from service.context import Context
from service.core.errors import DatabaseUnavailable, StaleDatabase
from service.core.loops import PeriodicLoop
from service.core.states import JobState
from service.database.queries import (
    deliveries,
    events,
    job_queue,
    maintenance,
    sessions,
    uploads,
)
from service.database.queries.maintenance import EndedJob, Learned
from service.datasets.uploads import EXPIRY_HOURS
from service.jobs.leases import Lease
from service.launchers.port import LauncherUnavailable
from service.maintenance.gc_store import remove_all, sweep_blobs, sweep_encoded, sweep_orphans

logger = logging.getLogger(__name__)

GCTask = Callable[[Context], None]

_ROUNDS_BETWEEN_RARE_TASKS = 60
_LEASE = timedelta(minutes=5)
_OUTAGES = (StaleDatabase, DatabaseUnavailable, LauncherUnavailable, StorageUnavailable)


class GarbageCollector(PeriodicLoop):
    """Runs all tasks once a minute, while this replica holds the lease."""

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
            if not self.lease.acquire():
                return False
            task(self._context)
        except _OUTAGES as error:
            logger.warning("%s failed: %s", task.__name__, error)
        except Exception:
            logger.exception("%s failed", task.__name__)
        return True


_AT_ONCE = 100
_MODELS_AT_ONCE = 10
_ROWS_AT_ONCE = 1000
_MOST_BATCHES = 20
# Longer than any transaction that read the model before it was deleted.
GRACE = timedelta(hours=1)
_AFTER_A_SESSION = timedelta(days=7)
# Files of a job's attempts after it ended: logs, and checkpoints for a retry.
_RUNS_KEPT_DAYS = 7
# Of the response to an Idempotency-Key: longer than clients retry.
_IDEMPOTENCY_HOURS = 24
# A reader of events that was away for a quarter of a year starts again.
EVENTS_KEPT_DAYS = 90


def sweep_jobs(context: Context) -> None:
    """Remove runs of jobs past their retention, and the dataset if no version has learned it."""
    now = context.clock()
    with context.database.read() as connection:
        ended = maintenance.ended_jobs(
            connection,
            now - timedelta(days=_RUNS_KEPT_DAYS),
            _AT_ONCE,
        )
    for job in ended:
        forget_attempts(context, job.id, job.attempts)
        if job.state in (JobState.PUBLISHED, JobState.EVALUATED):
            # Held-out rows of the dataset are needed for later versions.
            _sweep_runs(context, job)
        else:
            _sweep_unsuccessful(context, job)


def sweep_running(context: Context) -> None:
    """Remove what attempts show that do not run: of processes that were slow to end, and of interrupted steps."""
    shown = read_running(context.store)
    with context.database.read() as connection:
        running = maintenance.running_attempts(connection)
    for attempt in shown.keys() - running:
        forget_running(context.store, attempt)


def forget_attempts(context: Context, job: str, attempts: int) -> None:
    """Remove what the cluster keeps of the attempts. Called before the row goes, which lists them.

    Raises LauncherUnavailable: then the whole job is kept for a later round.
    """
    for attempt in range(1, attempts + 1):
        context.launcher.forget(submission_id(job, attempt))


def _sweep_runs(context: Context, job: EndedJob) -> None:
    if remove_all(context.store, layout.runs_prefix(job.id)):
        with context.database.write() as connection:
            maintenance.mark_job_swept(connection, job, context.clock())


def _sweep_unsuccessful(context: Context, job: EndedJob) -> None:
    now = context.clock()
    with context.database.write() as connection:
        if not maintenance.mark_job_swept(connection, job, now):
            return
        if job.own_dataset is not None:
            maintenance.mark_datasets_swept(connection, [job.own_dataset], now)
    remove_all(context.store, layout.runs_prefix(job.id))
    if job.own_dataset is not None:
        remove_all(context.store, layout.dataset_prefix(job.own_dataset))


def sweep_learned_datasets(context: Context) -> None:
    """Remove training rows, checkpoints and traces of preparation of datasets that have a version.

    A checkpoint is larger than a version. The checkpoints of a job that can still continue are kept.
    """
    with context.database.read() as connection:
        found = maintenance.learned_datasets(connection, _AT_ONCE)
    for dataset in found:
        # A list: a prefix that fails must not keep the others.
        removed = [remove_all(context.store, prefix) for prefix in _needed_to_learn(dataset)]
        if all(removed):
            _mark_dataset_swept(context, dataset.id)


def _needed_to_learn(dataset: Learned) -> list[str]:
    attempts = range(1, dataset.attempts + 1)
    checkpoints = (layout.run_checkpoints(dataset.job, attempt) for attempt in attempts)
    return [
        layout.training_shards(dataset.id),
        layout.preparation_files(dataset.id),
        *checkpoints,
    ]


def sweep_deleted_datasets(context: Context) -> None:
    """Remove all files of datasets that a user deleted."""
    with context.database.read() as connection:
        found = maintenance.deleted_datasets(connection, _AT_ONCE)
    for dataset in found:
        _mark_dataset_swept(context, dataset)
        remove_all(context.store, layout.dataset_prefix(dataset))


def sweep_unlearned_datasets(context: Context) -> None:
    """Remove datasets that were unlearned once every version that has learned them is retired.

    The files of these versions are given up as well (`sweep_blobs`): their heads and moments hold the dataset, and no
    later version is measured against them. Their manifests stay.
    """
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
        if remove_all(context.store, layout.dataset_prefix(dataset)) and not left:
            _mark_dataset_swept(context, dataset)


def _mark_dataset_swept(context: Context, dataset: str) -> None:
    with context.database.write() as connection:
        maintenance.mark_datasets_swept(connection, [dataset], context.clock())


def sweep_deleted_models(context: Context) -> None:
    """Remove deleted models with their datasets, except those that versions of another model have learned."""
    with context.database.read() as connection:
        found = maintenance.deleted_models(connection, context.clock() - GRACE, _MODELS_AT_ONCE)
    for model in found:
        _sweep_model(context, model)


def _sweep_model(context: Context, model: str) -> None:
    now = context.clock()
    with context.database.read() as connection:
        protected = maintenance.protected_datasets(connection, now - GRACE)
        found = maintenance.datasets_of(connection, model)
    datasets = found - protected
    prefixes = [layout.model_prefix(model), *map(layout.dataset_prefix, sorted(datasets))]
    # A list: a prefix that fails must not keep the others.
    removed = [remove_all(context.store, prefix) for prefix in prefixes]
    if all(removed):
        with context.database.write() as connection:
            maintenance.mark_datasets_swept(connection, datasets, now)
            # Another model that unlearned them did not mark them while this one had them.
            maintenance.mark_unlearned_deleted(connection, found & protected, now)
            maintenance.mark_model_swept(connection, model, now)


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


GC_TASKS: Sequence[GCTask] = (
    sweep_learned_datasets,
    sweep_jobs,
    sweep_running,
    sweep_deleted_datasets,
    sweep_deleted_models,
    sweep_uploads,
    sweep_responses,
    sweep_sessions,
    sweep_events,
    sweep_preparations,
)


# Listing every folder and every encoded shard of the store costs more than all other tasks together.
RARE_GC_TASKS: Sequence[GCTask] = (
    sweep_unlearned_datasets,
    sweep_orphans,
    sweep_blobs,
    sweep_encoded,
)
