"""Watches an attempt: its candidate, progress, end and deadlines.

The launcher's status is never trusted alone. A complete candidate takes precedence; an end without
one counts only after the attempt was stopped and a grace period has passed, because an attempt that
a cluster reports as failed may still run. Fencing makes such a mistake harmless, but not cheap.
"""

import logging
from dataclasses import replace

from pydantic import ValidationError

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.job import Failure, Progress, submission_id
from service.context import Context, is_past
from service.database.queries import jobs
from service.database.rows import JobRecord, ModelRecord
from service.jobs import outcomes
from service.launchers.port import LaunchState, LaunchStatus
from service.states import FailureReason, JobState
from workers.storage import layout

logger = logging.getLogger(__name__)

# Not a failure reason: the attempt is retried.
_SILENCE = "silence"


def watch(context: Context, job: JobRecord, _: ModelRecord) -> None:
    """running -> gating as soon as the candidate is complete, whatever the launcher reports."""
    if _has_candidate(context, job):
        _move_to_gating(context, job)
        return
    job = _with_progress(context, job)
    status = context.launcher.status(submission_id(job.id, job.attempt))
    if status.state == LaunchState.RUNNING and job.launched_at is None:
        job = _mark_launched(context, job)
    if status.has_ended:
        _watch_ended(context, job, status)
    elif is_overdue(context, job):
        context.launcher.stop(submission_id(job.id, job.attempt))
        _watch_ended(context, job, status)
    else:
        _watch_alive(context, job, status)


def _watch_alive(context: Context, job: JobRecord, status: LaunchStatus) -> None:
    """Stop the attempt if it reports a failure or missed a deadline; a later pass sees its end."""
    if status.state == LaunchState.RUNNING and job.ended_at is not None:
        _mark_launched(context, job)
    if _missed_deadline(context, job) is not None or _read_failure(context, job) is not None:
        context.launcher.stop(submission_id(job.id, job.attempt))


def _mark_launched(context: Context, job: JobRecord) -> JobRecord:
    """The launcher reports it as running: from now on the other deadlines apply."""
    now = context.clock()
    with context.database.write() as connection:
        jobs.set_launched(connection, job, now)
    return replace(job, launched_at=job.launched_at or now, ended_at=None)


def _watch_ended(context: Context, job: JobRecord, status: LaunchStatus) -> None:
    if _has_candidate(context, job):
        # It finished between the first check and the launcher's response.
        _move_to_gating(context, job)
        return
    failure = _read_failure(context, job)
    missed = _missed_deadline(context, job)
    if failure is not None:
        _end_with(context, job, failure)
    elif missed not in (None, _SILENCE) and status.state in _STOPPED_BY_US:
        # Another attempt would take just as long; the user decides whether to retry.
        outcomes.fail(context, job, FailureReason(missed), _deadline_message(context, job, missed))
    elif _is_past_grace_period(context, job):
        why = _silence_message(context) if missed == _SILENCE else status.message or "no candidate"
        outcomes.lose_attempt(context, job, f"{status.state}, {why}")


def _is_past_grace_period(context: Context, job: JobRecord) -> bool:
    """Whether the attempt ended long enough ago. The first call stops whatever may be left of it."""
    if job.ended_at is None:
        context.launcher.stop(submission_id(job.id, job.attempt))
        with context.database.write() as connection:
            jobs.set_ended(connection, job, context.clock())
        return context.settings.lost_attempt_grace_seconds == 0
    return is_past(context, job.ended_at, context.settings.lost_attempt_grace_seconds)


def _has_candidate(context: Context, job: JobRecord) -> bool:
    try:
        context.store.size(layout.run_file(job.id, job.attempt, layout.MANIFEST))
    except ObjectNotFound:
        return False
    return True


def _move_to_gating(context: Context, job: JobRecord) -> None:
    with context.database.write() as connection:
        jobs.move(connection, job, JobState.GATING, context.clock(), message=None)


def _with_progress(context: Context, job: JobRecord) -> JobRecord:
    """The job with its newest progress, stored if it changed."""
    progress = _read_progress(context, job)
    if progress is None or progress == job.progress:
        return job
    now = context.clock()
    with context.database.write() as connection:
        jobs.set_progress(connection, job, progress, now)
    return replace(job, progress=progress, heard_at=job.heard_at if progress.note else now)


def _read_progress(context: Context, job: JobRecord) -> Progress | None:
    key = layout.run_progress(job.id, job.attempt)
    try:
        written = Progress.model_validate_json(context.store.read(key))
        # Through JSON: a loss that is NaN becomes null, as databases require.
        return Progress.model_validate_json(written.model_dump_json())
    except ObjectNotFound:
        return None
    except ValidationError as error:
        # Progress is informational; it must not fail a job.
        logger.warning("%s cannot be read: %s", key, error, extra={"job": job.id})
        return job.progress


def _read_failure(context: Context, job: JobRecord) -> Failure | None:
    """The permanent failure that the attempt reported, if any."""
    key = layout.run_failure(job.id, job.attempt)
    try:
        return Failure.model_validate_json(context.store.read(key))
    except ObjectNotFound:
        return None
    except ValidationError as error:
        # Without a readable reason it counts as a lost attempt.
        logger.warning("%s cannot be read: %s", key, error, extra={"job": job.id})
        return None


def _end_with(context: Context, job: JobRecord, failure: Failure) -> None:
    if failure.reason == "invalid_dataset":
        outcomes.quarantine(context, job, failure.message)
    else:
        outcomes.fail(context, job, FailureReason(failure.reason), failure.message)


# What a launcher reports for an attempt that we stopped; some keep reporting it as running.
_STOPPED_BY_US = (LaunchState.STOPPED, LaunchState.RUNNING, LaunchState.PENDING)


def is_overdue(context: Context, job: JobRecord) -> bool:
    """Whether it was stopped so long ago that a launcher that reports it as running is wrong.

    If it does run, it is harmless: it writes under its own prefix only.
    """
    extra = context.settings.heartbeat_deadline_seconds
    return _missed_deadline(context, job, extra) is not None


def _missed_deadline(context: Context, job: JobRecord, extra: float = 0.0) -> str | None:
    """The deadline that passed more than `extra` seconds ago, or None.

    By our own clock only: a cluster's may be wrong.
    """
    settings = context.settings
    if job.launched_at is None:
        is_late = is_past(context, job.state_changed_at, settings.queue_deadline_seconds + extra)
        return FailureReason.QUEUE_DEADLINE if is_late else None
    if is_past(context, job.launched_at, settings.run_deadline_seconds + extra):
        return FailureReason.RUN_DEADLINE
    if job.heard_at is None:
        is_late = is_past(context, job.launched_at, settings.start_deadline_seconds + extra)
        return FailureReason.START_DEADLINE if is_late else None
    if is_past(context, job.heard_at, settings.heartbeat_deadline_seconds + extra):
        return _SILENCE
    return None


def _deadline_message(context: Context, job: JobRecord, reason: str | None) -> str:
    settings = context.settings
    if reason == FailureReason.RUN_DEADLINE:
        return f"the attempt had no candidate after {settings.run_deadline_seconds:g} s; it was stopped"
    if reason == FailureReason.QUEUE_DEADLINE:
        return (
            f"the cluster did not start the attempt within {settings.queue_deadline_seconds:g} s; "
            "it was stopped"
        )
    seconds = settings.start_deadline_seconds
    message = (
        f"the attempt reported no progress within {seconds:g} s; it was stopped. "
        "Does the cluster have the CPUs and GPUs that the ranks ask for?"
    )
    note = job.progress.note if job.progress else None
    return f"{message} Its last note: {note}" if note else message


def _silence_message(context: Context) -> str:
    seconds = context.settings.heartbeat_deadline_seconds
    return f"no heartbeat for {seconds:g} s"
