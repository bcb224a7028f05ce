"""Tasks of the garbage collector: what ended, was deleted, or has expired.

What may be asked for again (a failed job can be retried, a rejected one approved) is first marked swept in the
database, with the fence of its row, and then removed. What nothing can ask for is removed first.
"""

import logging
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Connection

from cmcl.contract.errors import StorageError
from cmcl.contract.job import submission_id
from service.context import Context
from service.database.queries import canaries, deliveries, events, maintenance, preflights, uploads
from service.database.queries.maintenance import EndedJob, Learned
from service.states import JobState
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)


_AT_ONCE = 100
_MODELS_AT_ONCE = 10
_ROWS_AT_ONCE = 1000
_MOST_BATCHES = 20
# Longer than any transaction that read the model before it was deleted.
GRACE = timedelta(hours=1)
# A replica writes observations until it sees that the canary ended, which takes less than this.
_AFTER_A_CANARY = timedelta(hours=1)


def remove_all(store: ObjectStore, prefix: str) -> bool:
    """Remove every object under a prefix. False if some are left, for a later round."""
    try:
        for key in list(store.keys(prefix)):
            store.delete(key)
    except StorageError as error:
        logger.warning("%s could not be removed; will retry: %s", prefix, error)
        return False
    return True


def sweep_jobs(context: Context) -> None:
    """Remove runs of jobs past their retention, and the dataset if no version has learned it."""
    now, settings = context.clock(), context.settings
    with context.database.read() as connection:
        ended = maintenance.ended_jobs(
            connection,
            now - timedelta(days=settings.runs_kept_days),
            now - timedelta(days=settings.rejected_kept_days),
            _AT_ONCE,
        )
    for job in ended:
        forget_attempts(context, job.id, job.attempts)
        if job.state == JobState.PUBLISHED:
            _sweep_published(context, job)
        else:
            _sweep_unsuccessful(context, job)


def forget_attempts(context: Context, job: str, attempts: int) -> None:
    """Remove what the cluster keeps of the attempts. Called before the row goes, which lists them.

    Raises LauncherUnavailable: then the whole job is kept for a later round.
    """
    for attempt in range(1, attempts + 1):
        context.launcher.forget(submission_id(job, attempt))


def sweep_learned_datasets(context: Context) -> None:
    """Remove converted training rows and checkpoints of datasets whose version is stored.

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
    return [layout.training_shards(dataset.id), *checkpoints]


def sweep_deleted_datasets(context: Context) -> None:
    """Remove all files of datasets that a user deleted."""
    with context.database.read() as connection:
        found = maintenance.deleted_datasets(connection, _AT_ONCE)
    for dataset in found:
        _mark_dataset_swept(context, dataset)
        remove_all(context.store, layout.dataset_prefix(dataset))


def _sweep_published(context: Context, job: EndedJob) -> None:
    if remove_all(context.store, layout.runs_prefix(job.id)):
        with context.database.write() as connection:
            maintenance.mark_job_swept(connection, job, context.clock())


def _sweep_unsuccessful(context: Context, job: EndedJob) -> None:
    now = context.clock()
    with context.database.write() as connection:
        if not maintenance.mark_job_swept(connection, job, now):
            return
        maintenance.mark_datasets_swept(connection, [job.dataset], now)
    remove_all(context.store, layout.runs_prefix(job.id))
    remove_all(context.store, layout.dataset_prefix(job.dataset))


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
        datasets = maintenance.datasets_of(connection, model) - protected
    prefixes = [layout.model_prefix(model), *map(layout.dataset_prefix, sorted(datasets))]
    # A list: a prefix that fails must not keep the others.
    removed = [remove_all(context.store, prefix) for prefix in prefixes]
    if all(removed):
        with context.database.write() as connection:
            maintenance.mark_datasets_swept(connection, datasets, now)
            maintenance.mark_model_swept(connection, model, now)


def sweep_uploads(context: Context) -> None:
    """Abort expired uploads that no dataset needs, then remove their objects, then their rows."""
    before = context.clock() - timedelta(hours=context.settings.upload_expiry_hours)
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


def sweep_responses(context: Context) -> None:
    """Remove stored responses to idempotency keys past their retention."""
    before = context.clock() - timedelta(hours=context.settings.idempotency_hours)
    _in_batches(
        context, lambda connection: maintenance.forget_responses(connection, before, _ROWS_AT_ONCE)
    )


def sweep_events(context: Context) -> None:
    """Remove events and deliveries past their retention."""
    before = context.clock() - timedelta(days=context.settings.events_kept_days)
    _in_batches(
        context, lambda connection: deliveries.forget_before(connection, before, _ROWS_AT_ONCE)
    )
    _in_batches(context, lambda connection: events.forget_before(connection, before, _ROWS_AT_ONCE))


def sweep_preflights(context: Context) -> None:
    """Remove pre-flights that ended longer ago than events are kept."""
    before = context.clock() - timedelta(days=context.settings.events_kept_days)
    with context.database.read() as connection:
        ended = preflights.ended_before(connection, before, _AT_ONCE)
    for preflight in ended:
        forget_attempts(context, preflight.id, preflight.attempt)
        if remove_all(context.store, layout.runs_prefix(preflight.id)):
            with context.database.write() as connection:
                preflights.forget(connection, preflight.id)


def sweep_observations(context: Context) -> None:
    """Remove observations of canaries that ended. Their sums stay in the database."""
    with context.database.read() as connection:
        ended = canaries.ended_before(connection, context.clock() - _AFTER_A_CANARY, _AT_ONCE)
    for canary in ended:
        if remove_all(context.store, layout.observations(canary.model, canary.revision)):
            with context.database.write() as connection:
                canaries.set_swept(connection, canary, context.clock())


def _abort_upload(context: Context, upload: str) -> None:
    """Abort it, unless a dataset has named it since it was found."""
    with context.database.write() as connection:
        uploads.lock(connection, upload)
        if not uploads.is_needed(connection, upload):
            uploads.abort(connection, upload)


def _in_batches(context: Context, forget: Callable[[Connection], int]) -> None:
    """Remove rows in short transactions, so that no other writer waits for long."""
    for _ in range(_MOST_BATCHES):
        with context.database.write() as connection:
            forgotten = forget(connection)
        if forgotten < _ROWS_AT_ONCE:
            return
