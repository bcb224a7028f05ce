"""Watches an attempt: its result, its end and its deadlines. `service.jobs.monitor` says when there is something to see.

The launcher's status is never trusted alone. A complete candidate takes precedence; an end without
one counts only after the attempt was stopped and a grace period has passed, because an attempt that
a cluster reports as failed may still run. Fencing makes such a mistake harmless, but not cheap.
"""

import logging
from dataclasses import replace
from datetime import datetime

from pydantic import ValidationError

from cmcl.contract.errors import ObjectNotFound, StorageUnavailable
from cmcl.contract.job import Failure, submission_id
from cmcl.contract.version import EvaluationResult
from cmcl.storage import layout
from cmcl.storage.running import forget_running
from service.context import Context
from service.core.states import FailureReason, JobState
from service.database.queries import jobs
from service.database.rows import JobRow
from service.jobs import steps
from service.launchers.port import LauncherUnavailable, LaunchState, LaunchStatus, status_of
from service.telemetry.spans import attempt_span

logger = logging.getLogger(__name__)

_SHORTEST_PAUSE, _PAUSE_AFTER_A_STOP = 0.2, 2.0
# Not a failure reason: the attempt is retried.
_SILENCE = "silence"

# What a launcher reports for an attempt that we stopped; some keep reporting it as running.
_STOPPED_BY_US = (LaunchState.STOPPED, LaunchState.RUNNING, LaunchState.PENDING)


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
        job = _mark_waiting(context, job, status.message or steps.STARTING)
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
    message = job.progress.note if job.progress else steps.STARTING
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
        steps.fail(context, job, FailureReason(missed), _deadline_message(context, job, missed))
    elif _is_past_grace_period(context, job):
        _close(context, job)
        why = _silence_message(context) if missed == _SILENCE else status.message or "no candidate"
        steps.lose_attempt(context, job, f"{status.state}, {why}")
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
            with context.database.write() as connection:
                moved = jobs.move(connection, job, JobState.GATING, context.clock(), message=None)
    except ObjectNotFound:
        return False
    if moved:
        # Afterwards: a candidate must not wait for the launcher.
        _close(context, job)
    return True


def _end_evaluation(context: Context, job: JobRow) -> bool:
    """Raises ObjectNotFound before there is a result."""
    text = context.store.read(layout.run_evaluation(job.id, job.attempt))
    try:
        result = EvaluationResult.model_validate_json(text)
    except ValidationError as error:
        # Written by another release. Another attempt would write the same.
        message = f"the result cannot be read: {error.errors(include_url=False)[0]['msg']}"
        steps.fail(context, job, FailureReason.INVALID_CANDIDATE, message)
        return True
    return steps.evaluated(context, job, result)


def _close(context: Context, job: JobRow) -> None:
    """Keep the log of an attempt that has ended, trace its stages, and remove what it has shown while it ran."""
    keep_log(context, job)
    stages = layout.run_stages(job.id, job.attempt)
    steps.trace_stages(context, attempt_span(job), stages, "train")
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
        return Failure.model_validate_json(context.store.read(key))
    except ObjectNotFound:
        return None
    except ValidationError as error:
        # Without a readable reason it counts as a lost attempt.
        logger.warning("%s cannot be read: %s", key, error, extra={"job": job.id})
        return None


def _end_with(context: Context, job: JobRow, failure: Failure) -> None:
    if failure.reason == "invalid_dataset":
        steps.quarantine(context, job, failure.message)
    else:
        steps.fail(context, job, FailureReason(failure.reason), failure.message)


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
