"""The steps of a prepared job until its attempt runs: begin, submit; and stop.

Each step reads the current state and does one thing. It may be interrupted anywhere and repeated.
"""

import logging

from pydantic import ValidationError

from cmcl.contract.dataset import EvaluationDataset
from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.job import AttemptRequest, JobSpec, submission_id
from cmcl.contract.version import EvaluationResult
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from service.auth.ownership import heads_problem
from service.context import Context
from service.core.settings import Settings
from service.core.states import FailureReason, JobState
from service.database.queries import datasets, jobs, models
from service.database.rows import DatasetRow, JobRow, ModelRow
from service.jobs import scheduler, steps
from service.jobs.watch import is_overdue, keep_log
from service.launchers.port import LauncherRefused, Submission, status_of
from service.registry import combining
from service.telemetry.spans import attempt_span

logger = logging.getLogger(__name__)

_NOTHING_LIVE = (
    "the model has no live version yet; the dataset is measured with each version from the first that has learned both "
    "of its modalities"
)
_WITH_AN_ATTEMPT = (JobState.SUBMITTING, JobState.RUNNING, JobState.GATING, JobState.HELD)


def begin(context: Context, job: JobRow, model: ModelRow) -> None:
    """Let a prepared job wait for room on the cluster, if it is this job's turn among those of its model.

    The scheduler moves it on: prepared -> submitting. An evaluation without a live version ends at once: later versions
    measure its dataset.
    """
    if job.eligible_at is not None:
        return
    if job.kind == "evaluate" and model.live_version is None:
        steps.evaluated(context, job, EvaluationResult(version=None, note=_NOTHING_LIVE))
        return
    message = heads_problem(model.spec.heads_bytes, context.settings.heads_bytes_max)
    if message is not None and job.kind != "evaluate":
        # The limit was lowered after the model was created.
        steps.fail(context, job, FailureReason.HEADS_TOO_LARGE, message)
        return
    if job.own_dataset is None and (problem := _problem(context, job)) is not None:
        # A job before it has changed the model.
        steps.fail(context, job, FailureReason.CANNOT_COMBINE, problem)
        return
    scheduler.enter(context, job, model.gate.priority)


def _problem(context: Context, job: JobRow) -> str | None:
    """Why a job that unlearns or merges cannot start from the newest version, or None."""
    with context.database.read() as connection:
        model = models.find(connection, job.model)
        return None if model is None else combining.problem_of(connection, job, model)


def submit(context: Context, job: JobRow, model: ModelRow) -> None:
    """submitting -> running. Idempotent: the attempt's id is in the database already."""
    spec = attempt_spec(context.store, job_spec(context, job, model))
    key = layout.run_spec(job.id, job.attempt)
    context.store.put(key, spec.model_dump_json().encode())
    try:
        context.launcher.submit(attempt_submission(context, job, model))
    except LauncherRefused as error:
        # A cluster that has just started refuses submissions for a while.
        if not context.is_past(job.state_changed_at, context.tuning.start_deadline_seconds):
            raise
        # An earlier call may have succeeded although its response was lost.
        context.launcher.stop(submission_id(job.id, job.attempt))
        steps.fail(context, job, FailureReason.LAUNCHER_REFUSED, str(error))
        return
    now = context.clock()
    with context.database.write() as connection:
        moved = jobs.move(
            *(connection, job, JobState.RUNNING, now),
            started_at=job.started_at or now,
            message=steps.STARTING,
        )
    if not moved:
        _stop_if_obsolete(context, job)


def _stop_if_obsolete(context: Context, job: JobRow) -> None:
    """Stop the attempt if the job changed during the submission and no longer needs it."""
    with context.database.read() as connection:
        now = jobs.find(connection, job.id)
    if now is None or now.attempt != job.attempt or now.state not in _WITH_AN_ATTEMPT:
        context.launcher.stop(submission_id(job.id, job.attempt))


def stop(context: Context, job: JobRow) -> None:
    """A user cancelled: stop the attempt and, once it has ended or is overdue, cancel the job."""
    if job.state in (JobState.SUBMITTING, JobState.RUNNING):
        attempt = submission_id(job.id, job.attempt)
        if not status_of(context.launcher, attempt).has_ended:
            context.launcher.stop(attempt)
            if not is_overdue(context, job):
                return
        keep_log(context, job)
    steps.cancelled(context, job)


def job_spec(context: Context, job: JobRow, model: ModelRow) -> JobSpec:
    """The specification of the job's current attempt, without a checkpoint to resume from."""
    manifest = None if job.own_dataset is None else dataset_of(context, job).manifest
    version = job.parent_version if job.kind == "evaluate" else job.version
    if version is None or (manifest is None and job.own_dataset is not None):
        raise RuntimeError(f"job {job.id} is {job.state} without a manifest or a version")
    return JobSpec(
        unlearns=job.dataset if job.kind == "unlearn" else None,
        merges=job.merges,
        job=job.id,
        kind=job.kind,
        attempt=job.attempt,
        model=job.model,
        version=version,
        parent=job.parent_version,
        spec=model.spec,
        dataset=manifest,
        evaluation_only=_measured_only(context, job),
        traceparent=attempt_span(job),
    )


def _measured_only(context: Context, job: JobRow) -> tuple[EvaluationDataset, ...]:
    """What the job's version is measured on in addition to what it has learned. An evaluation measures its own dataset."""
    if job.kind == "evaluate":
        return ()
    with context.database.read() as connection:
        return tuple(datasets.measured_only(connection, job.model))


def dataset_of(context: Context, job: JobRow) -> DatasetRow:
    """The dataset of a job that reads its rows."""
    with context.database.read() as connection:
        dataset = None if job.dataset is None else datasets.find(connection, job.dataset)
    if dataset is None:
        raise RuntimeError(f"job {job.id} has no dataset")
    return dataset


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
    """Whether both must produce the same heads.

    Those of a modality that was added in between are a function of its seed, and datasets that are measured only change
    none.
    """
    apart = {
        "attempt": 0,
        "resume_from": None,
        "evaluation_only": (),
        "spec": None,
        "traceparent": None,
    }
    specs = [each.spec.model_copy(update={"modalities": {}}) for each in (one, other)]
    return specs[0] == specs[1] and one.model_copy(update=apart) == other.model_copy(update=apart)


def _ended_by_itself(store: ObjectStore, job: str, attempt: int) -> bool:
    outcomes_of_attempt = (
        layout.run_failure(job, attempt),
        layout.run_candidate(job, attempt),
    )
    return any(_is_there(store, key) for key in outcomes_of_attempt)


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        store.size(key)
    except ObjectNotFound:
        return False
    return True


def attempt_submission(context: Context, job: JobRow, model: ModelRow) -> Submission:
    """What the launcher gets for the current attempt, with the priority of the current gate."""
    settings = context.settings
    about = {
        "job": job.id,
        "attempt": str(job.attempt),
        "model": job.model,
        "kind": job.kind,
        **({} if job.dataset is None else {"dataset": job.dataset}),
        "owner": job.owner,
        "priority": model.gate.priority,
    }
    return Submission(
        id=submission_id(job.id, job.attempt),
        command=_command(context, job),
        labels=labels(settings, about),
        queue=settings.queue_of(job.owner),
        priority=settings.cluster_priority(job.owner, model.gate.priority),
        ranks=settings.ranks,
        min_ranks=settings.fewest_ranks,
        gpus_per_rank=settings.gpus_per_rank,
        attempt=AttemptRequest(
            job=job.id,
            attempt=job.attempt,
            owner=job.owner,
            ranks=settings.ranks,
            min_ranks=settings.fewest_ranks,
            gpus_per_rank=settings.gpus_per_rank,
            idle_seconds=settings.ranks_idle_seconds,
        ),
    )


def labels(settings: Settings, about: dict[str, str]) -> dict[str, str]:
    """The configured labels, and ours under the prefix `cmcl/`."""
    return {**settings.job_labels, **{f"cmcl/{name}": text for name, text in about.items()}}


def _command(context: Context, job: JobRow) -> list[str]:
    attempt = ["--store", context.store.uri, "--job", job.id, "--attempt", str(job.attempt)]
    return ["python", "-m", "workers.train", *attempt, *rank_options(context.settings)]


def rank_options(settings: Settings) -> list[str]:
    """The size of a group of ranks, as options of a command."""
    return [
        *("--ranks", str(settings.ranks), "--gpus-per-rank", f"{settings.gpus_per_rank:g}"),
        *(("--min-ranks", str(settings.min_ranks)) if settings.min_ranks is not None else ()),
    ]
