"""The steps of a prepared job until its attempt has ended: begin, submit, watch; and stop.

Each step reads the current state and does one thing. It may be interrupted anywhere and repeated. `service.jobs.monitor`
says when there is something to see of a running attempt.

The launcher's status is never trusted alone. A complete candidate takes precedence; an end without
one counts only after the attempt was stopped and a grace period has passed, because an attempt that
a cluster reports as failed may still run. Fencing makes such a mistake harmless, but not cheap.
"""

import logging
from dataclasses import replace
from datetime import datetime

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.dataset import EvaluationDataset
from cmcl.contract.errors import InvalidVersion, ObjectNotFound, StorageUnavailable
from cmcl.contract.job import AttemptRequest, Failure, JobSpec, StageReport, submission_id
from cmcl.contract.version import EvaluationResult
from cmcl.storage import layout
from cmcl.storage.documents import read_document, write_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.running import forget_running
from service.auth.ownership import heads_problem
from service.context import Context
from service.core.settings import Settings
from service.database.queries import datasets, jobs, models
from service.database.rows import DatasetRow, JobRow, ModelRow
from service.jobs import scheduler
from service.jobs.transitions import fail, move, quarantine
from service.launchers.port import (
    LauncherRejected,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    status_of,
)
from service.registry import combining
from service.telemetry.spans import PastSpan, attempt_span

logger = logging.getLogger(__name__)

_NOTHING_LIVE = (
    "the model has no live version yet; the dataset is measured with each version from the first that has learned both "
    "of its modalities"
)
# Message of an attempt until it reports something.
STARTING = "the attempt is starting on the cluster"
_SHORTEST_PAUSE, _PAUSE_AFTER_A_STOP = 0.2, 2.0
# Not a failure reason: the attempt is retried.
_SILENCE = "silence"

# What a launcher reports for an attempt that we stopped; some keep reporting it as running.
_STOPPED_BY_US = (LaunchState.STOPPED, LaunchState.RUNNING, LaunchState.PENDING)
_WITH_AN_ATTEMPT = (JobState.SUBMITTING, JobState.RUNNING, JobState.GATING, JobState.HELD)


def begin(context: Context, job: JobRow, model: ModelRow) -> None:
    """Let a prepared job wait for room on the cluster, if it is this job's turn among those of its model.

    The scheduler moves it on: prepared -> submitting. An evaluation without a live version ends at once: later versions
    measure its dataset.
    """
    if job.eligible_at is not None:
        return
    if job.kind == "evaluate" and model.live_version is None:
        result = EvaluationResult(version=None, note=_NOTHING_LIVE)
        move(context, job, JobState.EVALUATED, evaluation=result, message=result.note)
        return
    message = heads_problem(model.spec.heads_bytes, context.settings.heads_bytes_max)
    if message is not None and job.kind != "evaluate":
        # The limit was lowered after the model was created.
        fail(context, job, FailureReason.HEADS_TOO_LARGE, message)
        return
    if job.own_dataset is None and (problem := _problem(context, job)) is not None:
        # A job before it has changed the model.
        fail(context, job, FailureReason.CANNOT_COMBINE, problem)
        return
    scheduler.enter(context, job, model.gate.priority)


def _problem(context: Context, job: JobRow) -> str | None:
    """Why a job that unlearns or merges cannot start from the newest version, or None."""
    with context.database.read() as connection:
        model = models.find(connection, job.model)
        return None if model is None else combining.problem_of(connection, job, model)


def submit(context: Context, job: JobRow, model: ModelRow) -> None:
    """submitting -> running. Idempotent: the attempt's id is in the database already."""
    assert job.attempt > job.attempts_before_retry
    spec = attempt_spec(context.store, job_spec(context, job, model))
    key = layout.run_spec(job.id, job.attempt)
    write_document(context.store, key, spec)
    try:
        context.launcher.submit(attempt_submission(context, job, model))
    except LauncherRejected as error:
        # A cluster that has just started refuses submissions for a while.
        if not context.is_past(job.state_changed_at, context.tuning.start_deadline_seconds):
            raise
        # An earlier call may have succeeded although its response was lost.
        context.launcher.stop(submission_id(job.id, job.attempt))
        fail(context, job, FailureReason.LAUNCHER_REJECTED, str(error))
        return
    started = {"started_at": job.started_at or context.clock(), "message": STARTING}
    if not move(context, job, JobState.RUNNING, **started):
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
    move(context, job, JobState.CANCELLED)


def watch(context: Context, job: JobRow, *, shows_end: bool) -> float | None:
    """running -> gating as soon as the candidate is complete, independently of what the launcher reports.

    An evaluation has a result instead: running -> evaluated. `shows_end`: the attempt has shown that it has written a
    candidate, a result or a failure; they are looked for then, and when it has ended. Returns after how many seconds it
    is to be watched again although nothing is shown.
    """
    if shows_end and _take_result(context, job):
        return None
    status = status_of(context.launcher, submission_id(job.id, job.attempt))
    if status.state in (LaunchState.QUEUED, LaunchState.PENDING):
        job = _mark_waiting(context, job, status.message or STARTING)
    elif status.state == LaunchState.RUNNING and job.launched_at is None:
        job = _mark_launched(context, job)
    if status.state == LaunchState.QUEUED:
        return None
    if status.has_ended:
        return _watch_ended(context, job, status)
    if is_overdue(context, job):
        context.launcher.stop(submission_id(job.id, job.attempt))
        return _watch_ended(context, job, status)
    _watch_alive(context, job, status, shows_end=shows_end)
    return _seconds_to_deadline(context, job)


def _watch_alive(context: Context, job: JobRow, status: LaunchStatus, *, shows_end: bool) -> None:
    """Stop the attempt if it reports a failure or missed a deadline; a later pass sees its end."""
    if status.state == LaunchState.RUNNING and job.ended_at is not None:
        _mark_launched(context, job)
    has_failed = shows_end and _read_failure(context, job) is not None
    if _missed_deadline(context, job) is not None or has_failed:
        context.launcher.stop(submission_id(job.id, job.attempt))


def _mark_waiting(context: Context, job: JobRow, message: str) -> JobRow:
    """The cluster has not started it yet, or has taken it back, as a queue does that evicts it.

    The time limit for the start begins again where it waits for something else, such as for its pods after a queue.
    """
    if job.launched_at is None and job.message == message:
        return job
    now = context.clock()
    with context.database.write() as connection:
        jobs.set_waiting(connection, job, message, now)
    return replace(
        job, launched_at=None, heard_at=None, ended_at=None, message=message, state_changed_at=now
    )


def _mark_launched(context: Context, job: JobRow) -> JobRow:
    """The launcher reports it as running: from now on the other deadlines apply."""
    now = context.clock()
    message = job.progress.note if job.progress else STARTING
    with context.database.write() as connection:
        jobs.set_launched(connection, job, now)
        if job.message not in (None, message):
            # What it waited for.
            jobs.set_message(connection, job, message)
    return replace(job, launched_at=job.launched_at or now, ended_at=None)


def _watch_ended(context: Context, job: JobRow, status: LaunchStatus) -> float | None:
    if _take_result(context, job):
        # It finished between the last listing and the launcher's response, or could not show its end.
        return None
    failure = _read_failure(context, job)
    missed = _missed_deadline(context, job)
    if failure is not None:
        _close(context, job)
        _end_with(context, job, failure)
    elif missed not in (None, _SILENCE) and status.state in _STOPPED_BY_US:
        _close(context, job)
        # Another attempt would take just as long; the user decides whether to retry.
        fail(context, job, FailureReason(missed), _deadline_message(context, job, missed))
    elif _is_past_grace_period(context, job):
        _close(context, job)
        why = _silence_message(context) if missed == _SILENCE else status.message or "no candidate"
        _lose_attempt(context, job, f"{status.state}, {why}")
    else:
        return max(_SHORTEST_PAUSE, context.tuning.lost_attempt_grace_seconds)
    return None


def _is_past_grace_period(context: Context, job: JobRow) -> bool:
    """Whether the attempt ended long enough ago. The first call stops whatever may be left of it."""
    if job.ended_at is None:
        context.launcher.stop(submission_id(job.id, job.attempt))
        with context.database.write() as connection:
            jobs.set_ended(connection, job, context.clock())
        return context.tuning.lost_attempt_grace_seconds == 0
    return context.is_past(job.ended_at, context.tuning.lost_attempt_grace_seconds)


def _take_result(context: Context, job: JobRow) -> bool:
    """Move the job on if its attempt has written what it was to write. Returns whether it has."""
    try:
        if job.kind == "evaluate":
            moved = _end_evaluation(context, job)
        else:
            context.store.size(layout.run_candidate(job.id, job.attempt))
            moved = move(context, job, JobState.GATING)
    except ObjectNotFound:
        return False
    if moved:
        # Afterwards: a candidate must not wait for the launcher.
        _close(context, job)
    return True


def _end_evaluation(context: Context, job: JobRow) -> bool:
    """Raises ObjectNotFound before there is a result."""
    key = layout.run_evaluation(job.id, job.attempt)
    try:
        result = read_document(context.store, key, EvaluationResult)
    except InvalidVersion as error:
        # Damaged, or written by another release: then another attempt would write the same.
        fail(context, job, FailureReason.INVALID_CANDIDATE, str(error))
        return True
    return move(context, job, JobState.EVALUATED, evaluation=result, message=result.note)


def _close(context: Context, job: JobRow) -> None:
    """Keep the log of an attempt that has ended, trace its stages, and remove what it has shown while it ran."""
    keep_log(context, job)
    stages = layout.run_stages(job.id, job.attempt)
    trace_stages(context, attempt_span(job), stages, "train")
    try:
        forget_running(context.store, submission_id(job.id, job.attempt))
    except StorageUnavailable as error:
        # Garbage collection removes it.
        logger.warning("%s: %s", job.id, error, extra={"job": job.id})


def keep_log(context: Context, job: JobRow) -> None:
    """Store the end of the attempt's log, before the cluster removes it.

    No job fails or waits for a log: where the launcher or the store does not respond, none is kept.
    """
    try:
        text = context.launcher.log(submission_id(job.id, job.attempt))
        if text:
            context.store.put(layout.run_log(job.id, job.attempt), text.encode())
    except (LauncherUnavailable, StorageUnavailable) as error:
        message = "the log of attempt %d of %s was not kept: %s"
        logger.warning(message, job.attempt, job.id, error, extra={"job": job.id})


def _read_failure(context: Context, job: JobRow) -> Failure | None:
    """The permanent failure that the attempt reported, if any."""
    key = layout.run_failure(job.id, job.attempt)
    try:
        return read_document(context.store, key, Failure)
    except ObjectNotFound:
        return None
    except InvalidVersion as error:
        # Without a readable reason it counts as a lost attempt.
        logger.warning("%s cannot be read: %s", key, error, extra={"job": job.id})
        return None


def _end_with(context: Context, job: JobRow, failure: Failure) -> None:
    if failure.reason == "invalid_dataset":
        quarantine(context, job, failure.message)
    else:
        fail(context, job, FailureReason(failure.reason), failure.message)


def is_overdue(context: Context, job: JobRow) -> bool:
    """Whether it was stopped so long ago that a launcher that reports it as running is wrong.

    If it does run, it is harmless: it writes under its own prefix only.
    """
    extra = context.tuning.heartbeat_deadline_seconds
    return _missed_deadline(context, job, extra) is not None


def _missed_deadline(context: Context, job: JobRow, extra: float = 0.0) -> str | None:
    """The deadline that passed more than `extra` seconds ago, or None.

    By our own clock only: a cluster's may be wrong.
    """
    settings, tuning = context.settings, context.tuning
    if job.launched_at is None:
        is_late = context.is_past(job.state_changed_at, settings.queue_deadline_seconds + extra)
        return FailureReason.QUEUE_DEADLINE if is_late else None
    if context.is_past(job.launched_at, settings.run_deadline_seconds + extra):
        return FailureReason.RUN_DEADLINE
    if job.heard_at is None:
        is_late = context.is_past(job.launched_at, tuning.start_deadline_seconds + extra)
        return FailureReason.START_DEADLINE if is_late else None
    if context.is_past(job.heard_at, tuning.heartbeat_deadline_seconds + extra):
        return _SILENCE
    return None


def _seconds_to_deadline(context: Context, job: JobRow) -> float:
    """Until the next deadline of an attempt that runs; some seconds if one has passed, for the stop to take effect."""
    settings, tuning, now = context.settings, context.tuning, context.clock()
    deadlines: list[tuple[datetime | None, float]]
    if job.launched_at is None:
        deadlines = [(job.state_changed_at, settings.queue_deadline_seconds)]
    else:
        first = (job.launched_at, tuning.start_deadline_seconds)
        silence = (job.heard_at, tuning.heartbeat_deadline_seconds)
        deadlines = [
            (job.launched_at, settings.run_deadline_seconds),
            first if job.heard_at is None else silence,
        ]
    left = [
        seconds - (now - since).total_seconds() for since, seconds in deadlines if since is not None
    ]
    return max(min(left), _PAUSE_AFTER_A_STOP)


def _deadline_message(context: Context, job: JobRow, reason: str | None) -> str:
    settings, tuning = context.settings, context.tuning
    if reason == FailureReason.RUN_DEADLINE:
        return f"the attempt had no candidate after {settings.run_deadline_seconds:g} s; it was stopped"
    if reason == FailureReason.QUEUE_DEADLINE:
        return (
            f"the cluster did not start the attempt within {settings.queue_deadline_seconds:g} s; "
            "it was stopped"
        )
    seconds = tuning.start_deadline_seconds
    message = (
        f"the attempt reported no progress within {seconds:g} s; it was stopped. "
        "Does the cluster have the CPUs and GPUs that the ranks ask for?"
    )
    note = job.progress.note if job.progress else None
    return f"{message} Its last note: {note}" if note else message


def _silence_message(context: Context) -> str:
    seconds = context.tuning.heartbeat_deadline_seconds
    return f"no heartbeat for {seconds:g} s"


def _lose_attempt(context: Context, job: JobRow, why: str) -> None:
    """Let the job wait for its next attempt, or fail it if none is left. Call only after the attempt ended.

    Its dataset stays prepared.
    """
    used = job.attempt - job.attempts_before_retry
    assert used > 0, "an attempt was lost that had not begun"
    permitted = context.settings.max_attempts
    if used >= permitted:
        message = f"{used} of {permitted} permitted attempts were lost; the last one: {why}"
        fail(context, job, FailureReason.ATTEMPTS_EXHAUSTED, message)
        return
    move(context, job, JobState.PREPARED, message=f"attempt {job.attempt} was lost: {why}")


def trace_stages(context: Context, span: str | None, key: str, kind: str) -> None:
    """Add the stages that a preparation or an attempt has reported to the trace, below its span.

    The job does not depend on them: where they are missing or cannot be read, its trace has none. `kind`: `prepare` or
    `train`.
    """
    if span is None:
        return
    try:
        report = read_document(context.store, key, StageReport)
    except ObjectNotFound:
        return
    except (StorageUnavailable, InvalidVersion) as error:
        logger.warning("the stages of a trace were not read: %s: %s", key, error)
        return
    if report.traceparent != span:
        return
    for stage in report.stages:
        name = f"{kind} {stage.name}"
        context.metrics.spans.add(PastSpan(name, span, stage.seconds, began_at=stage.began_at))


def job_spec(context: Context, job: JobRow, model: ModelRow) -> JobSpec:
    """The specification of the job's current attempt, without a checkpoint to resume from."""
    manifest = None if job.own_dataset is None else dataset_of(context, job).manifest
    version = job.parent_version if job.kind == "evaluate" else job.version
    assert version is not None, f"job {job.id} is {job.state} without a version"
    assert manifest is not None or job.own_dataset is None, f"job {job.id} has no manifest"
    assert job.kind == "evaluate" or version == (job.parent_version or 0) + 1
    return JobSpec(
        unlearns=job.dataset if job.kind == "unlearn" else None,
        merges=job.merges,
        erases=job.erases,
        job=job.id,
        kind=job.kind,
        attempt=job.attempt,
        model=job.model,
        version=version,
        parent=job.parent_version,
        spec=model.spec,
        dataset=manifest,
        evaluation_only=_measured_only(context, job),
        measures_all=model.gate.needs_every_dataset,
        measures_agreement=model.gate.bounds == "auto",
        traceparent=attempt_span(job),
    )


def _measured_only(context: Context, job: JobRow) -> tuple[EvaluationDataset, ...]:
    """What the job's version is measured on in addition to what it has learned. An evaluation measures its own dataset."""
    if job.kind == "evaluate":
        return ()
    with context.database.read() as connection:
        return tuple(datasets.measured_only(connection, job.model))


def dataset_of(context: Context, job: JobRow) -> DatasetRow:
    with context.database.read() as connection:
        dataset = None if job.dataset is None else datasets.find(connection, job.dataset)
    assert dataset is not None, f"job {job.id} has no dataset"
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
        return read_document(store, key, JobSpec)
    except ObjectNotFound:
        return None
    except InvalidVersion as error:
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
    outcomes_of_attempt = (layout.run_failure(job, attempt), layout.run_candidate(job, attempt))
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
    labels = {
        "cmcl/job": job.id,
        "cmcl/attempt": str(job.attempt),
        "cmcl/model": job.model,
        "cmcl/kind": job.kind,
        **({} if job.dataset is None else {"cmcl/dataset": job.dataset}),
        "cmcl/owner": job.owner,
        "cmcl/priority": model.gate.priority,
    }
    return Submission(
        id=submission_id(job.id, job.attempt),
        command=_command(context, job),
        labels=labels,
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


def _command(context: Context, job: JobRow) -> list[str]:
    attempt = ["--store", context.store.uri, "--job", job.id, "--attempt", str(job.attempt)]
    return ["python", "-m", "workers.train", *attempt, *rank_options(context.settings)]


def rank_options(settings: Settings) -> list[str]:
    """The size of a group of ranks, as options of a command."""
    return [
        *("--ranks", str(settings.ranks), "--gpus-per-rank", f"{settings.gpus_per_rank:g}"),
        *(("--min-ranks", str(settings.min_ranks)) if settings.min_ranks is not None else ()),
    ]
