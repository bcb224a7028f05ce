"""What ended jobs and deleted datasets leave behind.

What may be asked for again (a failed job can be retried, a rejected one approved) is first given up in
the database, with the fence, and then removed. What nobody can ask for is first removed.
"""

from datetime import timedelta

from cmcl.contract.job import submission_id
from service.control.context import Context
from service.control.sweep.purge import remove_all
from service.database.queries import sweeping
from service.database.queries.sweeping import EndedJob, Learned
from service.states import JobState
from workers.storage import layout

_AT_ONCE = 100


def sweep_jobs(context: Context) -> None:
    """Attempts of jobs that ended long ago; with the dataset, where no version has learned it."""
    now, settings = context.clock(), context.settings
    with context.database.read() as connection:
        ended = sweeping.ended_jobs(
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
    """What the cluster keeps of them. Before the row goes: afterwards nobody would ask again.

    Raises LauncherUnavailable: while a cluster is away, all of it stays. That can wait.
    """
    for attempt in range(1, attempts + 1):
        context.launcher.forget(submission_id(job, attempt))


def sweep_learned_datasets(context: Context) -> None:
    """What only learning needed, once a version is stored: training rows in our store, checkpoints.

    A checkpoint is larger than a version. While a job can still be carried on, its checkpoints stay.
    """
    with context.database.read() as connection:
        found = sweeping.learned_datasets(connection, _AT_ONCE)
    for dataset in found:
        # All of them, also where one cannot be removed now.
        removed = [remove_all(context.store, prefix) for prefix in _needed_to_learn(dataset)]
        if all(removed):
            _give_up_dataset(context, dataset.id)


def _needed_to_learn(dataset: Learned) -> list[str]:
    attempts = range(1, dataset.attempts + 1)
    checkpoints = (layout.run_checkpoints(dataset.job, attempt) for attempt in attempts)
    return [layout.training_shards(dataset.id), *checkpoints]


def sweep_deleted_datasets(context: Context) -> None:
    """All files of those that a user deleted."""
    with context.database.read() as connection:
        found = sweeping.deleted_datasets(connection, _AT_ONCE)
    for dataset in found:
        _give_up_dataset(context, dataset)
        remove_all(context.store, layout.dataset_prefix(dataset))


def _sweep_published(context: Context, job: EndedJob) -> None:
    if remove_all(context.store, layout.runs_prefix(job.id)):
        with context.database.write() as connection:
            sweeping.give_up_job(connection, job, context.clock())


def _sweep_unsuccessful(context: Context, job: EndedJob) -> None:
    now = context.clock()
    with context.database.write() as connection:
        if not sweeping.give_up_job(connection, job, now):
            return
        sweeping.give_up_datasets(connection, [job.dataset], now)
    remove_all(context.store, layout.runs_prefix(job.id))
    remove_all(context.store, layout.dataset_prefix(job.dataset))


def _give_up_dataset(context: Context, dataset: str) -> None:
    with context.database.write() as connection:
        sweeping.give_up_datasets(connection, [dataset], context.clock())
