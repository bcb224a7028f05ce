"""Attempts of a job: their outcomes, their progress over time, and the end of their logs."""

from typing import Annotated

from fastapi import APIRouter, Query

from cmcl.contract.api.jobs import Attempt, AttemptLog, JobState, ProgressHistory, ProgressPoint
from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.job import submission_id
from cmcl.storage import layout
from service.api.dependencies import ContextDep, JobPath, Reader
from service.api.pagination import LARGEST_NUMBER, NumberSeek, Page, page
from service.auth.ownership import get_job
from service.core.errors import FieldProblem, NotFound
from service.database.queries import attempts
from service.database.queries.attempts import FIRST_INTERVAL, AttemptRow
from service.database.rows import JobRow

router = APIRouter(prefix="/v1/jobs/{job}", tags=["jobs"])

AttemptQuery = Annotated[
    int | None,
    Query(ge=1, le=LARGEST_NUMBER, description="number of the attempt; default: the newest"),
]


@router.get("/attempts")
def list_attempts(
    job: JobPath, principal: Reader, context: ContextDep, seek: NumberSeek
) -> Page[Attempt]:
    """List the attempts of a job, oldest first; with `order=desc`, the newest first."""
    with context.database.read() as connection:
        get_job(connection, job, principal)
        found = attempts.page(connection, job, seek.peek())
    return page(found, seek, _to_attempt, lambda attempt: attempt.number)


@router.get("/progress")
def read_progress(
    job: JobPath, principal: Reader, context: ContextDep, attempt: AttemptQuery = None
) -> ProgressHistory:
    """Read the progress of an attempt over time: phase, loss, rate, rows, removed share and drift."""
    with context.database.read() as connection:
        number = _number(get_job(connection, job, principal), attempt)
        found = None if number is None else attempts.find(connection, job, number)
        points = [] if number is None else attempts.points(connection, job, number)
    interval = found.progress_interval if found else None
    return ProgressHistory(
        job=job,
        attempt=number,
        interval_seconds=interval or FIRST_INTERVAL,
        points=[ProgressPoint.model_validate({"at": each.at, **each.figures}) for each in points],
    )


@router.get("/log")
def read_log(
    job: JobPath, principal: Reader, context: ContextDep, attempt: AttemptQuery = None
) -> AttemptLog:
    """Read the end of an attempt's log: of a running one from the cluster, of another one as it was kept.

    404 if the job has had no attempt, or no log was kept. 503 if the cluster does not respond.
    """
    with context.database.read() as connection:
        found = get_job(connection, job, principal)
    number = _number(found, attempt)
    if number is None:
        raise NotFound(f"job {job} has had no attempt yet")
    is_live = number == found.attempt and found.state in (JobState.SUBMITTING, JobState.RUNNING)
    if is_live:
        text = context.launcher.log(submission_id(job, number))
        return AttemptLog(job=job, attempt=number, live=True, text=text)
    try:
        data = context.store.read(layout.run_log(job, number))
    except ObjectNotFound as error:
        raise NotFound(f"no log of attempt {number} of job {job} was kept") from error
    return AttemptLog(job=job, attempt=number, live=False, text=data.decode(errors="replace"))


def _to_attempt(attempt: AttemptRow) -> Attempt:
    return Attempt.model_validate(vars(attempt) | {"attempt": attempt.number})


def _number(job: JobRow, attempt: int | None) -> int | None:
    """The attempt that is asked for, or the newest. Raises NotFound."""
    if attempt is None:
        return job.attempt or None
    if attempt > job.attempt:
        permitted = f"1 to {job.attempt}" if job.attempt else "none yet"
        message = f"job {job.id} has no attempt {attempt}; permitted: {permitted}"
        raise NotFound(message, FieldProblem("attempt", message, attempt))
    return attempt
