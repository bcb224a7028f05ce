"""The steps of a job from its turn to its attempt: begin, validate, submit. And stop.

Each step looks at what is there and does one thing. It may be cut off anywhere and run again.
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
from workers.storage.port import ObjectStore

logger = logging.getLogger(__name__)

_WITH_AN_ATTEMPT = (JobState.SUBMITTING, JobState.RUNNING, JobState.GATING, JobState.HELD)


def begin(context: Context, job: JobRecord, _: ModelRecord) -> None:
    """queued -> validating, if no other job of the model is in flight."""
    with context.database.write() as connection:
        # Locked, because two that begin at once would not see each other.
        models.lock(connection, job.model)
        jobs.start_validating(connection, job, context.clock())


def validate(context: Context, job: JobRecord, model: ModelRecord) -> None:
    """validating -> submitting, or failed. Quick after a lost attempt: the manifest is there."""
    message = heads_problem(model.spec.heads_bytes, context.settings.heads_bytes_max)
    if message is not None:
        # The limit was lowered since the model was made.
        outcomes.fail(context, job, FailureReason.HEADS_TOO_LARGE, message)
        return
    try:
        manifest = _manifest(context, job, model)
    except StorageUnavailable as error:
        # A bucket that does not exist looks like one that does not answer; one wrong address must
        # not hold up the model for ever.
        if not is_past(context, job.state_changed_at, context.settings.start_deadline_seconds):
            raise
        outcomes.fail(context, job, FailureReason.STORAGE_UNAVAILABLE, str(error))
    except WorkerError as error:
        # What was written of it stays for the sweeper: the job may be tried again at any moment, and
        # what is removed then would be missed.
        outcomes.quarantine(context, job, str(error))
    else:
        if manifest is not None:
            _assign_attempt(context, job, manifest)


def submit(context: Context, job: JobRecord, model: ModelRecord) -> None:
    """submitting -> running. Its id is in the database already, so a repeat changes nothing."""
    spec = attempt_spec(context.store, job_spec(context, job, model))
    key = layout.run_spec(job.id, job.attempt)
    context.store.put(key, spec.model_dump_json().encode())
    try:
        context.launcher.submit(attempt_submission(context, job, model))
    except LauncherRefused as error:
        # A cluster that has only just started refuses for a while.
        if not is_past(context, job.state_changed_at, context.settings.start_deadline_seconds):
            raise
        # An earlier call may have been heard all the same, and its answer lost.
        context.launcher.stop(submission_id(job.id, job.attempt))
        outcomes.fail(context, job, FailureReason.LAUNCHER_REFUSED, str(error))
        return
    now = context.clock()
    with context.database.write() as connection:
        moved = jobs.move(
            connection, job, JobState.RUNNING, now, started_at=job.started_at or now, message=None
        )
    if not moved:
        _take_back_if_late(context, job)


def _take_back_if_late(context: Context, job: JobRecord) -> None:
    """The job moved on while the launcher was told: does it still want this attempt?"""
    with context.database.read() as connection:
        now = jobs.find(connection, job.id)
    if now is None or now.attempt != job.attempt or now.state not in _WITH_AN_ATTEMPT:
        context.launcher.stop(submission_id(job.id, job.attempt))


def stop(context: Context, job: JobRecord) -> None:
    """A user cancelled: end the attempt, and once it has ended (or should have), the job."""
    if job.state in (JobState.SUBMITTING, JobState.RUNNING):
        attempt = submission_id(job.id, job.attempt)
        if not context.launcher.status(attempt).has_ended:
            context.launcher.stop(attempt)
            if not is_overdue(context, job):
                return
    context.validations.cancel(job.dataset)
    outcomes.cancelled(context, job)


def job_spec(context: Context, job: JobRecord, model: ModelRecord) -> JobSpec:
    """What the job's present attempt was asked to do, wherever it began."""
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
    """Known, written by a process that died before it could say so, or to be made now."""
    dataset = _dataset(context, job)
    if dataset.manifest is not None:
        return dataset.manifest
    # Not while it is being made: asked at each look, a store fails once in a while, and a dataset that
    # takes long to read would be given up for it.
    ticket = Ticket(dataset.id, job.revision, dataset.owner)
    if not context.validations.is_pending(ticket):
        written = read_manifest(context.store, dataset.id)
        if written is not None:
            return written
    return context.validations.result(
        ticket, lambda validate: validate(context.store, _task(context, dataset, model))
    )


def _task(context: Context, dataset: DatasetRecord, model: ModelRecord) -> ValidationTask:
    """Raises InvalidDataset if an upload was removed meanwhile."""
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
    """Number, parent and version are in the database before the launcher hears of them."""
    attempt = submission_id(job.id, job.attempt + 1)
    with context.database.write() as connection:
        model = models.lock(connection, job.model)
        parent = model.head or None if model is not None else None
        if jobs.start_attempt(connection, job, parent, attempt, context.clock()):
            datasets.set_manifest(connection, manifest)


def attempt_spec(store: ObjectStore, asked: JobSpec) -> JobSpec:
    """The specification that the attempt reads: as it was told before, or with its checkpoint now.

    A step may be repeated after the attempt has begun, when there may be other checkpoints. Told
    another one in the middle, ranks of one attempt would begin at different updates.
    """
    told = _told(store, asked.job, asked.attempt)
    if told is not None and _asks_alike(told, asked):
        return told
    return asked.model_copy(update={"resume_from": newest_checkpoint(store, asked)})


def newest_checkpoint(store: ObjectStore, asked: JobSpec) -> str | None:
    """Of the latest attempt that left any; None: there is nothing that may be used.

    Attempts that started from another version asked another question, because the model has moved
    on since. The search ends at one that came to an end by itself, with a candidate or with a word
    that it would fail again. The job was not over then only because the candidate was of no use, or
    because a user asks for a retry after something else was mended (the code, the shards). What led
    to that end may be in its checkpoints already, and in those that it went on from.
    """
    for attempt in range(asked.attempt - 1, 0, -1):
        if _came_to_an_end(store, asked.job, attempt):
            return None
        told = _told(store, asked.job, attempt)
        if told is not None and _asks_alike(told, asked):
            found = list(store.keys(layout.run_checkpoints(asked.job, attempt)))
            if found:
                return found[-1]
    return None


def _told(store: ObjectStore, job: str, attempt: int) -> JobSpec | None:
    key = layout.run_spec(job, attempt)
    try:
        return JobSpec.model_validate_json(store.read(key))
    except ObjectNotFound:
        return None
    except ValidationError as error:
        # Another release may have written it: then its checkpoints are not ours to judge.
        logger.warning("%s cannot be read: %s", key, error, extra={"job": job})
        return None


def _asks_alike(one: JobSpec, other: JobSpec) -> bool:
    """Whether both must lead to the same version."""
    apart = {"attempt": 0, "resume_from": None}
    return one.model_copy(update=apart) == other.model_copy(update=apart)


def _came_to_an_end(store: ObjectStore, job: str, attempt: int) -> bool:
    last_words = (
        layout.run_failure(job, attempt),
        layout.run_file(job, attempt, layout.MANIFEST),
    )
    return any(_is_there(store, key) for key in last_words)


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        store.size(key)
    except ObjectNotFound:
        return False
    return True


def attempt_submission(context: Context, job: JobRecord, model: ModelRecord) -> Submission:
    """The job's present attempt; its priority is that of the model's policy by now."""
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
    """The site's own, and ours under a prefix of their own."""
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
        # A cluster of its own has no ranks of an earlier attempt, and no later one will come.
        *(("--cold",) if settings.launcher == "kuberay" else ()),
    ]
