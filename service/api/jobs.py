"""Jobs: watched, cancelled, tried again."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from service.api.answers import answer, record
from service.api.dependencies import (
    ContextDep,
    JobPath,
    Limit,
    ModelQuery,
    NumberCursor,
    RequestKeyDep,
    encode_cursor,
)
from service.api.schemas import JobView, Page
from service.control import interventions
from service.control.intake import get_job
from service.database import jobs
from service.database.rows import AnswerRecord
from service.states import JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("")
def list_jobs(
    context: ContextDep,
    cursor: NumberCursor,
    model: ModelQuery = None,
    state: Annotated[JobState | None, Query()] = None,
    limit: Limit = 50,
) -> Page[JobView]:
    """Jobs in the order of their arrival."""
    with context.database.read() as connection:
        found = jobs.page(connection, model, state, cursor, limit + 1)
    following = encode_cursor(found[limit - 1].sequence) if len(found) > limit else None
    return Page(items=[JobView.of(job) for job in found[:limit]], next_cursor=following)


@router.get("/{job}")
def read_job(job: JobPath, context: ContextDep) -> JobView:
    """One job with its progress."""
    with context.database.read() as connection:
        return JobView.of(get_job(connection, job))


@router.post("/{job}/cancel", status_code=202, response_model=JobView)
def cancel_job(job: JobPath, context: ContextDep, key: RequestKeyDep) -> JSONResponse:
    """Ask for a job to be stopped. 409 once its candidate is being judged, or it has ended."""

    def effect(connection: Connection) -> AnswerRecord:
        cancelled = interventions.cancel(connection, job, context.clock())
        return record(key, 202, JobView.of(cancelled), f"/v1/jobs/{job}")

    return answer(context, key, effect)


@router.post("/{job}/retry", status_code=202, response_model=JobView)
def retry_job(job: JobPath, context: ContextDep, key: RequestKeyDep) -> JSONResponse:
    """Give a failed job new attempts."""

    def effect(connection: Connection) -> AnswerRecord:
        queued = interventions.retry(connection, job, context.clock())
        return record(key, 202, JobView.of(queued), f"/v1/jobs/{job}")

    return answer(context, key, effect)
