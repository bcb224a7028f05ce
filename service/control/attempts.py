"""The steps of a job from its turn to its candidate: begin, validate, submit, watch.

Each step looks at what is there and does one thing. It may be cut off anywhere and run again.
"""

import logging
import shlex
from datetime import timedelta

from pydantic import ValidationError

from service.control import outcomes
from service.control.context import Context
from service.control.validate import purge, read_manifest, verify
from service.database import datasets, jobs, models
from service.database.rows import DatasetRecord, JobRecord, ModelRecord
from service.launchers.port import LauncherRefused, LaunchState
from service.states import FailureReason, JobState
from workers.contract.dataset import DatasetManifest
from workers.contract.errors import ObjectNotFound, StorageUnavailable, WorkerError
from workers.contract.job import Failure, JobSpec, Progress, submission_id
from workers.storage import layout

logger = logging.getLogger(__name__)


def begin(context: Context, job: JobRecord, _: ModelRecord) -> None:
    """queued -> validating, if no other job of the model is in flight."""
    with context.database.write() as connection:
        jobs.start_validating(connection, job, context.clock())


def validate(context: Context, job: JobRecord, model: ModelRecord) -> None:
    """validating -> submitting, or failed. Quick after a lost attempt: the manifest is there."""
    try:
        manifest = _manifest(context, _dataset(context, job), model)
    except StorageUnavailable as error:
        # A bucket that does not exist looks like one that does not answer; one wrong address must
        # not hold up the model for ever.
        if not _is_overdue(context, job, context.settings.start_deadline_seconds):
            raise
        outcomes.fail(context, job, FailureReason.STORAGE_UNAVAILABLE, str(error))
    except WorkerError as error:
        # Only who moved the job may clean up: another control plane may have got on with it.
        if outcomes.quarantine(context, job, str(error)):
            purge(context.store, job.dataset)
    else:
        if manifest is not None:
            _assign_attempt(context, job, manifest)


def submit(context: Context, job: JobRecord, model: ModelRecord) -> None:
    """submitting -> running. Its id is in the database already, so a repeat changes nothing."""
    spec = job_spec(context, job, model)
    key = layout.run_spec(job.id, job.attempt)
    context.store.put(key, spec.model_dump_json().encode())
    try:
        context.launcher.submit(submission_id(job.id, job.attempt), _command(context, job))
    except LauncherRefused as error:
        # A cluster that has only just started refuses for a while.
        if not _is_overdue(context, job, context.settings.start_deadline_seconds):
            raise
        outcomes.fail(context, job, FailureReason.LAUNCHER_REFUSED, str(error))
        return
    now = context.clock()
    with context.database.write() as connection:
        moved = jobs.move(
            connection, job, JobState.RUNNING, now, started_at=job.started_at or now, message=None
        )
    if moved:
        context.metrics.attempts.inc()


def watch(context: Context, job: JobRecord, _: ModelRecord) -> None:
    """running -> gating as soon as the candidate is complete, whatever the launcher believes."""
    if _has_candidate(context, job):
        _to_gating(context, job)
        return
    progress = _record_progress(context, job)
    status = context.launcher.status(submission_id(job.id, job.attempt))
    overdue = _missed_deadline(context, job, progress)
    failure = _read_failure(context, job)
    if not status.has_ended:
        if overdue is not None or failure is not None:
            context.launcher.stop(submission_id(job.id, job.attempt))
    elif _has_candidate(context, job):
        # It finished between the first look and the launcher's answer.
        _to_gating(context, job)
    elif failure is not None:
        _end_with(context, job, failure)
    elif overdue is not None and status.state == LaunchState.STOPPED:
        # Another attempt would wait, or run, just as long: that is for the user to decide.
        outcomes.fail(context, job, overdue, _deadline_words(context, overdue))
    else:
        outcomes.lose_attempt(context, job, f"{status.state}, {status.message or 'no candidate'}")


def stop(context: Context, job: JobRecord) -> None:
    """A user cancelled: end the attempt, and once it has ended, the job."""
    if job.state in (JobState.SUBMITTING, JobState.RUNNING):
        attempt = submission_id(job.id, job.attempt)
        if not context.launcher.status(attempt).has_ended:
            context.launcher.stop(attempt)
            return
    context.validations.forget(job.dataset)
    outcomes.cancelled(context, job)


def job_spec(context: Context, job: JobRecord, model: ModelRecord) -> JobSpec:
    """What the job's present attempt was asked to do."""
    manifest = _dataset(context, job).manifest
    if manifest is None or job.version is None:
        raise RuntimeError(f"job {job.id} is {job.state} without a manifest or a version")
    return JobSpec(
        job=job.id,
        attempt=job.attempt,
        model=job.model,
        version=job.version,
        parent=job.parent_version,
        spec=model.spec,
        dataset=manifest,
    )


def _dataset(context: Context, job: JobRecord) -> DatasetRecord:
    with context.database.read() as connection:
        dataset = datasets.find(connection, job.dataset)
    if dataset is None:
        raise RuntimeError(f"job {job.id} has no dataset")
    return dataset


def _manifest(
    context: Context, dataset: DatasetRecord, model: ModelRecord
) -> DatasetManifest | None:
    """Known, written by a process that died before it could say so, or to be made now."""
    if dataset.manifest is not None:
        return dataset.manifest
    written = read_manifest(context.store, dataset.id)
    if written is not None:
        return written
    return context.validations.outcome(
        dataset.id, lambda: verify(context.store, dataset, model.spec)
    )


def _assign_attempt(context: Context, job: JobRecord, manifest: DatasetManifest) -> None:
    """Number, parent and version are in the database before the launcher hears of them."""
    attempt = job.attempt + 1
    with context.database.write() as connection:
        model = models.lock(connection, job.model)
        head = model.head if model is not None else 0
        datasets.set_manifest(connection, manifest)
        jobs.move(
            connection,
            job,
            JobState.SUBMITTING,
            context.clock(),
            attempt=attempt,
            submission_id=submission_id(job.id, attempt),
            parent_version=head or None,
            version=head + 1,
            progress=None,
            message=None,
        )


def _command(context: Context, job: JobRecord) -> list[str]:
    settings = context.settings
    return [
        *shlex.split(settings.worker_command),
        *("--store", context.store.uri, "--job", job.id, "--attempt", str(job.attempt)),
        *("--ranks", str(settings.ranks), "--gpus-per-rank", f"{settings.gpus_per_rank:g}"),
    ]


def _has_candidate(context: Context, job: JobRecord) -> bool:
    try:
        context.store.size(layout.run_file(job.id, job.attempt, layout.MANIFEST))
    except ObjectNotFound:
        return False
    return True


def _to_gating(context: Context, job: JobRecord) -> None:
    with context.database.write() as connection:
        jobs.move(connection, job, JobState.GATING, context.clock())


def _record_progress(context: Context, job: JobRecord) -> Progress | None:
    """The newest progress, written down if it is news."""
    progress = _read_progress(context, job)
    if progress is None or progress == job.progress:
        return progress
    with context.database.write() as connection:
        jobs.set_progress(connection, job, progress)
    return progress


def _read_progress(context: Context, job: JobRecord) -> Progress | None:
    key = layout.run_progress(job.id, job.attempt)
    try:
        written = Progress.model_validate_json(context.store.read(key))
        # Once through JSON: a loss that is not a number becomes null, as databases need it.
        return Progress.model_validate_json(written.model_dump_json())
    except ObjectNotFound:
        return None
    except ValidationError as error:
        # Progress is for the eye only; a job must not die of it.
        logger.warning("%s cannot be read: %s", key, error, extra={"job": job.id})
        return job.progress


def _read_failure(context: Context, job: JobRecord) -> Failure | None:
    """What the attempt left where it knew that another one would fail alike."""
    key = layout.run_failure(job.id, job.attempt)
    try:
        return Failure.model_validate_json(context.store.read(key))
    except ObjectNotFound:
        return None
    except ValidationError as error:
        # An attempt that cannot even say why it failed is one more lost attempt.
        logger.warning("%s cannot be read: %s", key, error, extra={"job": job.id})
        return None


def _end_with(context: Context, job: JobRecord, failure: Failure) -> None:
    if failure.reason == "invalid_dataset":
        outcomes.quarantine(context, job, failure.message)
    else:
        outcomes.fail(context, job, FailureReason.TRAINING_FAILED, failure.message)


def _missed_deadline(
    context: Context, job: JobRecord, progress: Progress | None
) -> FailureReason | None:
    if _is_overdue(context, job, context.settings.run_deadline_seconds):
        return FailureReason.RUN_DEADLINE
    if progress is None and _is_overdue(context, job, context.settings.start_deadline_seconds):
        return FailureReason.START_DEADLINE
    return None


def _is_overdue(context: Context, job: JobRecord, seconds: float) -> bool:
    """Whether the job has been in its state for longer than that."""
    return context.clock() - job.state_changed_at > timedelta(seconds=seconds)


def _deadline_words(context: Context, reason: FailureReason) -> str:
    if reason == FailureReason.RUN_DEADLINE:
        seconds = context.settings.run_deadline_seconds
        return f"the attempt had no candidate after {seconds:g} s; it was stopped"
    seconds = context.settings.start_deadline_seconds
    return f"the attempt reported no progress within {seconds:g} s; it was stopped"
