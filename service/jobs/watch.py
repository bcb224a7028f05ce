"""Watching an attempt: its candidate, its progress, its end, and the times that it may take.

The launcher is asked, and never trusted alone. A complete candidate is believed before it; an end
without one is believed only after the attempt was stopped and some seconds have gone by, because
what a cluster reports as failed may still run. The fence makes a mistake harmless, not cheap.
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

# Not a reason to fail by itself: the attempt is repeated.
_SILENCE = "silence"


def watch(context: Context, job: JobRecord, _: ModelRecord) -> None:
    """running -> gating as soon as the candidate is complete, whatever the launcher believes."""
    if _has_candidate(context, job):
        _to_gating(context, job)
        return
    job = _with_progress(context, job)
    status = context.launcher.status(submission_id(job.id, job.attempt))
    if status.state == LaunchState.RUNNING and job.launched_at is None:
        job = _launched(context, job)
    if status.has_ended:
        _watch_ended(context, job, status)
    elif is_overdue(context, job):
        context.launcher.stop(submission_id(job.id, job.attempt))
        _watch_ended(context, job, status)
    else:
        _watch_alive(context, job, status)


def _watch_alive(context: Context, job: JobRecord, status: LaunchStatus) -> None:
    """Stop it where it says that it failed, or has taken too long; its end is seen later."""
    if status.state == LaunchState.RUNNING and job.ended_at is not None:
        _launched(context, job)
    if _missed_deadline(context, job) is not None or _read_failure(context, job) is not None:
        context.launcher.stop(submission_id(job.id, job.attempt))


def _launched(context: Context, job: JobRecord) -> JobRecord:
    """The launcher says that it runs: from now on other times count."""
    now = context.clock()
    with context.database.write() as connection:
        jobs.set_launched(connection, job, now)
    return replace(job, launched_at=job.launched_at or now, ended_at=None)


def _watch_ended(context: Context, job: JobRecord, status: LaunchStatus) -> None:
    if _has_candidate(context, job):
        # It finished between the first look and the launcher's answer.
        _to_gating(context, job)
        return
    failure = _read_failure(context, job)
    missed = _missed_deadline(context, job)
    if failure is not None:
        _end_with(context, job, failure)
    elif missed not in (None, _SILENCE) and status.state in _STOPPED_BY_US:
        # Another attempt would wait, or run, just as long: that is for the user to decide.
        outcomes.fail(context, job, FailureReason(missed), _deadline_words(context, job, missed))
    elif _has_been_over_for_a_while(context, job):
        why = _silence_words(context) if missed == _SILENCE else status.message or "no candidate"
        outcomes.lose_attempt(context, job, f"{status.state}, {why}")


def _has_been_over_for_a_while(context: Context, job: JobRecord) -> bool:
    """At the first sight of its end, whatever may be left of it is told to stop."""
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


def _to_gating(context: Context, job: JobRecord) -> None:
    with context.database.write() as connection:
        jobs.move(connection, job, JobState.GATING, context.clock(), message=None)


def _with_progress(context: Context, job: JobRecord) -> JobRecord:
    """The job with its newest progress, written down if it is news."""
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
        outcomes.fail(context, job, FailureReason(failure.reason), failure.message)


# What the launcher says of an attempt that we have told to stop; or it goes on saying that it runs.
_STOPPED_BY_US = (LaunchState.STOPPED, LaunchState.RUNNING, LaunchState.PENDING)


def is_overdue(context: Context, job: JobRecord) -> bool:
    """Whether it was told to stop for long enough: a launcher that still says it runs is wrong.

    Were it right, the attempt could do no harm: it writes under its own prefix alone.
    """
    extra = context.settings.heartbeat_deadline_seconds
    return _missed_deadline(context, job, extra) is not None


def _missed_deadline(context: Context, job: JobRecord, extra: float = 0.0) -> str | None:
    """Which of our own times is over, and so many seconds more.

    All by our own clock, so a cluster's may be wrong.
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


def _deadline_words(context: Context, job: JobRecord, reason: str | None) -> str:
    settings = context.settings
    if reason == FailureReason.RUN_DEADLINE:
        return f"the attempt had no candidate after {settings.run_deadline_seconds:g} s; it was stopped"
    if reason == FailureReason.QUEUE_DEADLINE:
        return (
            f"the cluster did not start the attempt within {settings.queue_deadline_seconds:g} s; "
            "it was taken back"
        )
    seconds = settings.start_deadline_seconds
    words = (
        f"the attempt reported no progress within {seconds:g} s; it was stopped. "
        "Does the cluster have the CPUs and GPUs that the ranks ask for?"
    )
    note = job.progress.note if job.progress else None
    return f"{words} It said: {note}" if note else words


def _silence_words(context: Context) -> str:
    seconds = context.settings.heartbeat_deadline_seconds
    return f"nothing was heard of it for {seconds:g} s"
