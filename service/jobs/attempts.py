"""The steps of a job until its attempt runs: begin, validate, submit; and stop.

Each step reads the current state and does one thing. It may be interrupted anywhere and repeated.
"""

import logging
import shlex

from pydantic import ValidationError

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import ObjectNotFound, StorageUnavailable, WorkerError
from cmcl.contract.job import JobSpec, submission_id
from service.context import Context, is_past
from service.database.queries import datasets, jobs, models
from service.database.rows import DatasetRecord, JobRecord, ModelRecord
from service.datasets.request import NewDataset
from service.datasets.uploads import resolve
from service.datasets.validations import Ticket
from service.datasets.verify import ValidationTask, read_manifest
from service.jobs import outcomes
from service.jobs.watch import is_overdue
from service.launchers.port import LauncherRefused, Submission
from service.quotas import heads_problem
from service.settings import Settings
from service.states import FailureReason, JobState
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

_WITH_AN_ATTEMPT = (JobState.SUBMITTING, JobState.RUNNING, JobState.GATING, JobState.HELD)


def begin(context: Context, job: JobRecord, _: ModelRecord) -> None:
    """queued -> validating, if no other job of the model is in flight."""
    with context.database.write() as connection:
        # Locked: two jobs that begin concurrently would not see each other.
        models.lock(connection, job.model)
        jobs.start_validating(connection, job, context.clock())


def validate(context: Context, job: JobRecord, model: ModelRecord) -> None:
    """validating -> submitting, or failed. Fast after a lost attempt: the manifest exists already."""
    message = heads_problem(model.spec.heads_bytes, context.settings.heads_bytes_max)
    if message is not None:
        # The limit was lowered after the model was created.
        outcomes.fail(context, job, FailureReason.HEADS_TOO_LARGE, message)
        return
    try:
        manifest = _manifest(context, job, model)
    except StorageUnavailable as error:
        # A missing bucket looks like one that does not respond; one wrong address must not block
        # the model permanently.
        if not is_past(context, job.state_changed_at, context.settings.start_deadline_seconds):
            raise
        outcomes.fail(context, job, FailureReason.STORAGE_UNAVAILABLE, str(error))
    except WorkerError as error:
        # Partial files are left to garbage collection: the job may be retried at any moment, and the
        # retry would miss what is deleted now.
        outcomes.quarantine(context, job, str(error))
    else:
        if manifest is not None:
            _assign_attempt(context, job, manifest)


def submit(context: Context, job: JobRecord, model: ModelRecord) -> None:
    """submitting -> running. Idempotent: the attempt's id is in the database already."""
    spec = attempt_spec(context.store, job_spec(context, job, model))
    key = layout.run_spec(job.id, job.attempt)
    context.store.put(key, spec.model_dump_json().encode())
    try:
        context.launcher.submit(attempt_submission(context, job, model))
    except LauncherRefused as error:
        # A cluster that has just started refuses submissions for a while.
        if not is_past(context, job.state_changed_at, context.settings.start_deadline_seconds):
            raise
        # An earlier call may have succeeded although its response was lost.
        context.launcher.stop(submission_id(job.id, job.attempt))
        outcomes.fail(context, job, FailureReason.LAUNCHER_REFUSED, str(error))
        return
    now = context.clock()
    with context.database.write() as connection:
        moved = jobs.move(
            connection, job, JobState.RUNNING, now, started_at=job.started_at or now, message=None
        )
    if not moved:
        _stop_if_obsolete(context, job)


def _stop_if_obsolete(context: Context, job: JobRecord) -> None:
    """Stop the attempt if the job changed during the submission and no longer needs it."""
    with context.database.read() as connection:
        now = jobs.find(connection, job.id)
    if now is None or now.attempt != job.attempt or now.state not in _WITH_AN_ATTEMPT:
        context.launcher.stop(submission_id(job.id, job.attempt))


def stop(context: Context, job: JobRecord) -> None:
    """A user cancelled: stop the attempt and, once it has ended or is overdue, cancel the job."""
    if job.state in (JobState.SUBMITTING, JobState.RUNNING):
        attempt = submission_id(job.id, job.attempt)
        if not context.launcher.status(attempt).has_ended:
            context.launcher.stop(attempt)
            if not is_overdue(context, job):
                return
    context.validations.cancel(job.dataset)
    outcomes.cancelled(context, job)


def job_spec(context: Context, job: JobRecord, model: ModelRecord) -> JobSpec:
    """The specification of the job's current attempt, without a checkpoint to resume from."""
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


def _manifest(context: Context, job: JobRecord, model: ModelRecord) -> DatasetManifest | None:
    """The dataset's manifest: from the database, the store (after a crash) or a validation."""
    dataset = _dataset(context, job)
    if dataset.manifest is not None:
        return dataset.manifest
    # Not while validation runs: reading the store in every pass would sooner or later hit an outage,
    # and a long validation would fail because of it.
    ticket = Ticket(dataset.id, job.revision, dataset.owner)
    if not context.validations.is_pending(ticket):
        written = read_manifest(context.store, dataset.id)
        if written is not None:
            return written
    return context.validations.result(
        ticket, lambda validate: validate(context.store, _task(context, dataset, model))
    )


def _task(context: Context, dataset: DatasetRecord, model: ModelRecord) -> ValidationTask:
    """Raises InvalidDataset if an upload has been removed."""
    request = NewDataset.model_validate(dataset.request)
    uris = {ref.uri for ref in (*request.shards, *request.evaluation_shards)}
    locations = {uri: found for uri in uris if (found := resolve(context, uri)) != uri}
    return ValidationTask(
        dataset=dataset.id,
        **request.model_dump(exclude={"sealed"}),
        spec=model.spec,
        allowed=context.settings.allowed_prefixes,
        locations=locations,
    )


def _assign_attempt(context: Context, job: JobRecord, manifest: DatasetManifest) -> None:
    """Commit number, parent and version before anything is submitted to the launcher."""
    attempt = submission_id(job.id, job.attempt + 1)
    with context.database.write() as connection:
        model = models.lock(connection, job.model)
        parent = model.head or None if model is not None else None
        if jobs.start_attempt(connection, job, parent, attempt, context.clock()):
            datasets.set_manifest(connection, manifest)


def attempt_spec(store: ObjectStore, asked: JobSpec) -> JobSpec:
    """The specification that the attempt reads: the one written before, or one with a checkpoint.

    The step may be repeated after the attempt has begun, when there may be newer checkpoints. If
    the checkpoint changed then, ranks of one attempt would start from different updates.
    """
    written = _written_spec(store, asked.job, asked.attempt)
    if written is not None and _is_same_work(written, asked):
        return written
    return asked.model_copy(update={"resume_from": newest_checkpoint(store, asked)})


def newest_checkpoint(store: ObjectStore, asked: JobSpec) -> str | None:
    """The newest checkpoint of the latest attempt that has a usable one, or None.

    Attempts with another parent version are skipped: the model has changed since. The search stops
    at an attempt that ended by itself, with a candidate or a permanent failure: the job continues
    only because the candidate was unusable or because a user retries after fixing something else
    (the code, the shards). The cause may already be in that attempt's checkpoints and in earlier
    ones.
    """
    for attempt in range(asked.attempt - 1, 0, -1):
        if _ended_by_itself(store, asked.job, attempt):
            return None
        written = _written_spec(store, asked.job, attempt)
        if written is not None and _is_same_work(written, asked):
            found = list(store.keys(layout.run_checkpoints(asked.job, attempt)))
            if found:
                return found[-1]
    return None


def _written_spec(store: ObjectStore, job: str, attempt: int) -> JobSpec | None:
    key = layout.run_spec(job, attempt)
    try:
        return JobSpec.model_validate_json(store.read(key))
    except ObjectNotFound:
        return None
    except ValidationError as error:
        # Perhaps written by another release; then its checkpoints cannot be trusted.
        logger.warning("%s cannot be read: %s", key, error, extra={"job": job})
        return None


def _is_same_work(one: JobSpec, other: JobSpec) -> bool:
    """Whether both must produce the same version."""
    apart = {"attempt": 0, "resume_from": None}
    return one.model_copy(update=apart) == other.model_copy(update=apart)


def _ended_by_itself(store: ObjectStore, job: str, attempt: int) -> bool:
    outcomes_of_attempt = (
        layout.run_failure(job, attempt),
        layout.run_file(job, attempt, layout.MANIFEST),
    )
    return any(_is_there(store, key) for key in outcomes_of_attempt)


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        store.size(key)
    except ObjectNotFound:
        return False
    return True


def attempt_submission(context: Context, job: JobRecord, model: ModelRecord) -> Submission:
    """What the launcher gets for the current attempt, with the priority of the current policy."""
    settings = context.settings
    about = {
        "job": job.id,
        "attempt": str(job.attempt),
        "model": job.model,
        "dataset": job.dataset,
        "owner": job.owner,
        "priority": model.policy.priority,
    }
    return Submission(
        id=submission_id(job.id, job.attempt),
        command=_command(context, job, model),
        labels=labels(settings, about),
        priority=model.policy.priority,
        ranks=settings.ranks,
        min_ranks=settings.fewest_ranks,
        gpus_per_rank=settings.gpus_per_rank,
    )


def labels(settings: Settings, about: dict[str, str]) -> dict[str, str]:
    """The configured labels, and ours under the prefix `cmcl/`."""
    return {**settings.job_labels, **{f"cmcl/{name}": text for name, text in about.items()}}


def _command(context: Context, job: JobRecord, model: ModelRecord) -> list[str]:
    settings = context.settings
    return [
        *shlex.split(settings.worker_command),
        *("--store", context.store.uri, "--job", job.id, "--attempt", str(job.attempt)),
        *("--ranks", str(settings.ranks), "--gpus-per-rank", f"{settings.gpus_per_rank:g}"),
        *(("--min-ranks", str(settings.min_ranks)) if settings.min_ranks is not None else ()),
        *("--priority", model.policy.priority),
        *("--idle-seconds", f"{settings.ranks_idle_seconds:g}"),
        # A dedicated cluster has no warm ranks, and no later attempt will use it.
        *(("--cold",) if settings.launcher == "kuberay" else ()),
    ]
