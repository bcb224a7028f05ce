"""Attempts of a job: their outcomes, their progress over time, and the end of their logs."""

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.job import Phase, submission_id
from cmcl.storage import layout
from service.api.dependencies import ContextDep, JobPath, Reader
from service.api.pagination import LARGEST_NUMBER, NumberSeek, Page, page
from service.auth.ownership import get_job
from service.core.errors import FieldProblem, NotFound
from service.core.states import FailureReason, JobState
from service.database.queries import attempts
from service.database.queries.attempts import FIRST_INTERVAL, AttemptOutcome, ProgressPoint
from service.database.rows import JobRow

router = APIRouter(prefix="/v1/jobs/{job}", tags=["jobs"])

AttemptQuery = Annotated[
    int | None,
    Query(ge=1, le=LARGEST_NUMBER, description="number of the attempt; default: the newest"),
]


class AttemptView(BaseModel):
    """An attempt to train a job's dataset."""

    model_config = ConfigDict(from_attributes=True)

    attempt: int = Field(validation_alias="number")
    parent_version: int | None = Field(description="version that it starts from")
    created_at: datetime = Field(description="when its number was assigned")
    started_at: datetime | None = Field(description="when the cluster was first seen running it")
    ended_at: datetime | None = Field(
        description="when its end was noticed; null: it has not ended"
    )
    outcome: AttemptOutcome | None = Field(
        description="candidate: it wrote one, which is judged next; measured: so was the dataset, which is not learned; lost: it ended without, and another attempt follows; "
        "failed: so did the job; cancelled: by a user"
    )
    reason: FailureReason | None = Field(description="why the job failed with it")
    message: str | None = Field(description="the reason, or why it was lost, as a sentence")


class ProgressPointView(BaseModel):
    """Progress at one time. Figures that the phase does not have are 0 or null."""

    at: datetime = Field(description="when it arrived")
    phase: Phase
    updates_done: int = 0
    updates_total: int = 0
    rows_done: int = Field(default=0, description="rows read, over all ranks")
    rows_total: int = 0
    loss: float | None = Field(default=None, description="loss of the last batch")
    rows_per_second: float | None = Field(default=None, description="over all ranks")
    gradient_norm: float | None = Field(
        default=None, description="norm of both heads' gradient, after the mask"
    )
    removed_share: float | None = Field(
        default=None, description="share of the gradient's square that the mask removed, 0 to 1"
    )
    drift: float | None = Field(
        default=None,
        description="first-order estimate of how far earlier scores have moved in this job, relative to their size",
    )

    @classmethod
    def of(cls, point: ProgressPoint) -> Self:
        """Create it from a record."""
        return cls.model_validate({"at": point.at, **point.figures})


class ProgressHistory(BaseModel):
    """Progress of an attempt over time."""

    job: str
    attempt: int | None = Field(description="null: the job has had no attempt")
    interval_seconds: float = Field(
        description="time between two points; it doubles whenever there are 300 of them"
    )
    points: list[ProgressPointView] = Field(
        description="at most 300, oldest first: the newest progress of each interval, so the last point is the newest. "
        "Empty before training has begun, and once the files of the job were removed"
    )


class LogView(BaseModel):
    """The end of what an attempt has printed."""

    job: str
    attempt: int
    live: bool = Field(description="whether the attempt has not ended, so that there may be more")
    text: str = Field(description="at most 1,000 lines and 64 KiB")


@router.get("/attempts")
def list_attempts(
    job: JobPath, principal: Reader, context: ContextDep, seek: NumberSeek
) -> Page[AttemptView]:
    """List the attempts of a job, oldest first; with `order=desc`, the newest first."""
    with context.database.read() as connection:
        get_job(connection, job, principal)
        found = attempts.page(connection, job, seek.peek())
    return page(found, seek, AttemptView.model_validate, lambda attempt: attempt.number)


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
        points=[ProgressPointView.of(point) for point in points],
    )


@router.get("/log")
def read_log(
    job: JobPath, principal: Reader, context: ContextDep, attempt: AttemptQuery = None
) -> LogView:
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
        return LogView(job=job, attempt=number, live=True, text=text)
    try:
        data = context.store.read(layout.run_log(job, number))
    except ObjectNotFound as error:
        raise NotFound(f"no log of attempt {number} of job {job} was kept") from error
    return LogView(job=job, attempt=number, live=False, text=data.decode(errors="replace"))


def _number(job: JobRow, attempt: int | None) -> int | None:
    """The attempt that is asked for, or the newest. Raises NotFound."""
    if attempt is None:
        return job.attempt or None
    if attempt > job.attempt:
        permitted = f"1 to {job.attempt}" if job.attempt else "none yet"
        message = f"job {job.id} has no attempt {attempt}; permitted: {permitted}"
        raise NotFound(message, FieldProblem("attempt", message, attempt))
    return attempt
