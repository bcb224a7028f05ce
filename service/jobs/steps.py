"""One step of a job: its time, its message, and how it ends the job or loses the attempt."""

import logging
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError

from cmcl.contract.errors import ObjectNotFound, StorageUnavailable
from cmcl.contract.job import StageReport
from cmcl.contract.version import EvaluationResult
from service.context import Context
from service.core.errors import DatabaseError, StaleDatabase
from service.core.states import FailureReason, JobState
from service.database.queries import datasets, jobs, preparations
from service.database.rows import JobRow, PreparedRows
from service.launchers.port import LauncherError
from service.telemetry.spans import PastSpan

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Message of an attempt until it reports something.
STARTING = "the attempt is starting on the cluster"


def run_step(context: Context, job: JobRow, name: str, step: Callable[[], T]) -> T:
    """Run the step, timed and traced under its name. Returns and raises what the step does."""
    try:
        with context.metrics.step(name, job):
            return step()
    except (LauncherError, StorageUnavailable, StaleDatabase) as error:
        set_message(context, job, f"waiting: {error}")
        raise
    except DatabaseError:
        raise
    except Exception as error:
        kind = type(error).__name__
        message = f"waiting: internal server error ({kind}); see the log of the service"
        set_message(context, job, message)
        raise


def trace_stages(context: Context, span: str | None, key: str, kind: str) -> None:
    """Add the stages that a preparation or an attempt has reported to the trace, below its span.

    The job does not depend on them: where they are missing or cannot be read, its trace has none. `kind`: `prepare` or
    `train`.
    """
    if span is None:
        return
    try:
        report = StageReport.model_validate_json(context.store.read(key))
    except ObjectNotFound:
        return
    except (StorageUnavailable, ValidationError) as error:
        logger.warning("the stages of a trace were not read: %s: %s", key, error)
        return
    if report.traceparent != span:
        return
    for stage in report.stages:
        name = f"{kind} {stage.name}"
        context.metrics.spans.add(PastSpan(name, span, stage.seconds, began_at=stage.began_at))


def set_message(context: Context, job: JobRow, message: str | None) -> None:
    """Set the job's message, if it is another one."""
    if message == job.message:
        return
    with context.database.write() as connection:
        jobs.set_message(connection, job, message)


def fail(context: Context, job: JobRow, reason: FailureReason, message: str) -> None:
    """Fail the job; the user sees the reason and can retry."""
    _end(context, job, JobState.FAILED, reason, message)


def reject(context: Context, job: JobRow, reason: FailureReason, message: str) -> None:
    """The candidate is valid but violates the gate. The job can be retried, for example after a change of the gate."""
    _end(context, job, JobState.REJECTED, reason, message)


def hold(context: Context, job: JobRow) -> None:
    """The candidate passed, and the gate requires manual approval before it is published."""
    message = "waits for approval (manual_approval)"
    with context.database.write() as connection:
        jobs.move(connection, job, JobState.HELD, context.clock(), message=message)


def evaluated(context: Context, job: JobRow, result: EvaluationResult) -> bool:
    """End the job of a dataset that is measured only. Returns whether this call did it."""
    with context.database.write() as connection:
        return jobs.finish_evaluation(connection, job, result, context.clock())


def cancelled(context: Context, job: JobRow) -> None:
    """Mark the job cancelled once nothing of it runs."""
    _end(context, job, JobState.CANCELLED, None, None)


def quarantine(
    context: Context, job: JobRow, message: str, rejected: PreparedRows | None = None
) -> bool:
    """Fail the job and quarantine its dataset. Returns whether this call did it.

    `rejected`: the rows that cannot be used, as far as they are known.
    """
    now = context.clock()
    with context.database.write() as connection:
        reason = FailureReason.INVALID_DATASET
        moved = jobs.finish(connection, job, JobState.FAILED, now, reason, message)
        if moved and job.own_dataset is not None:
            datasets.release(connection, job.own_dataset)
            datasets.quarantine(connection, job.own_dataset, message)
            if rejected is not None:
                preparations.set_rejected(connection, job.id, rejected)
    return moved


def lose_attempt(context: Context, job: JobRow, why: str) -> None:
    """Let the job wait for its next attempt, or fail it if none is left. Call only after the attempt ended.

    Its dataset stays prepared.
    """
    used = job.attempt - job.attempts_before_retry
    permitted = context.settings.max_attempts
    if used >= permitted:
        message = f"{used} of {permitted} permitted attempts were lost; the last one: {why}"
        fail(context, job, FailureReason.ATTEMPTS_EXHAUSTED, message)
        return
    message = f"attempt {job.attempt} was lost: {why}"
    with context.database.write() as connection:
        jobs.move(connection, job, JobState.PREPARED, context.clock(), message=message)


def _end(
    context: Context,
    job: JobRow,
    state: JobState,
    reason: FailureReason | None,
    message: str | None,
) -> None:
    with context.database.write() as connection:
        moved = jobs.finish(connection, job, state, context.clock(), reason, message)
        if moved and job.own_dataset is not None:
            datasets.release(connection, job.own_dataset)
