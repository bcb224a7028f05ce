"""How a job ends without a version, and how an attempt is lost."""

from service.context import Context
from service.database.queries import datasets, jobs
from service.database.rows import JobRecord
from service.states import FailureReason, JobState


def fail(context: Context, job: JobRecord, reason: FailureReason, message: str) -> None:
    """Fail the job; the user sees the reason and can retry."""
    _end(context, job, JobState.FAILED, reason, message)


def reject(context: Context, job: JobRecord, reason: FailureReason, message: str) -> None:
    """The candidate is valid but violates the policy. It is kept for a while and can be approved."""
    _end(context, job, JobState.REJECTED, reason, message)


def hold(context: Context, job: JobRecord) -> None:
    """The candidate passed, and the policy requires manual approval before it is published."""
    message = "waits for approval (manual_approval)"
    with context.database.write() as connection:
        jobs.move(connection, job, JobState.HELD, context.clock(), message=message)


def cancelled(context: Context, job: JobRecord) -> None:
    """Mark the job cancelled once nothing of it runs."""
    _end(context, job, JobState.CANCELLED, None, None)


def quarantine(context: Context, job: JobRecord, message: str) -> bool:
    """Fail the job and quarantine its dataset. Returns whether this call did it."""
    now = context.clock()
    with context.database.write() as connection:
        reason = FailureReason.INVALID_DATASET
        moved = jobs.finish(connection, job, JobState.FAILED, now, reason, message)
        if moved:
            datasets.release(connection, job.dataset)
            datasets.quarantine(connection, job.dataset, message)
    return moved


def lose_attempt(context: Context, job: JobRecord, why: str) -> None:
    """Queue the job again, or fail it if no attempts are left. Call only after the attempt ended."""
    used = job.attempt - job.attempts_before_retry
    permitted = context.settings.max_attempts
    if used >= permitted:
        message = f"{used} of {permitted} permitted attempts were lost; the last one: {why}"
        fail(context, job, FailureReason.ATTEMPTS_EXHAUSTED, message)
        return
    message = f"attempt {job.attempt} was lost: {why}"
    with context.database.write() as connection:
        jobs.move(connection, job, JobState.QUEUED, context.clock(), message=message)


def _end(
    context: Context,
    job: JobRecord,
    state: JobState,
    reason: FailureReason | None,
    message: str | None,
) -> None:
    with context.database.write() as connection:
        moved = jobs.finish(connection, job, state, context.clock(), reason, message)
        if moved:
            datasets.release(connection, job.dataset)
