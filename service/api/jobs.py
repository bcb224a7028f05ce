"""Jobs: watched, cancelled, tried again, approved."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from service.api.dependencies import (
    ContextDep,
    JobPath,
    Limit,
    ModelQuery,
    NumberCursor,
    Reader,
    RequestKey,
    RequestKeyDep,
    Trainer,
    encode_cursor,
)
from service.api.idempotency import answer, record
from service.api.schemas import JobView, Page, ReasonBody
from service.context import Context
from service.database.queries import jobs
from service.database.rows import AnswerRecord, JobRecord
from service.jobs import actions
from service.jobs.actions import Word
from service.lookup import get_job
from service.states import JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Intervention = Callable[[Connection, str, Word], JobRecord]


@router.get("")
def list_jobs(
    principal: Reader,
    context: ContextDep,
    cursor: NumberCursor,
    model: ModelQuery = None,
    state: Annotated[JobState | None, Query()] = None,
    limit: Limit = 50,
) -> Page[JobView]:
    """Jobs in the order of their arrival."""
    where = {"owner": principal.owner, "model": model, "state": state}
    with context.database.read() as connection:
        found = jobs.page(connection, where, cursor, limit + 1)
    following = encode_cursor(found[limit - 1].sequence) if len(found) > limit else None
    return Page(items=[JobView.of(job) for job in found[:limit]], next_cursor=following)


@router.get("/{job}")
def read_job(job: JobPath, principal: Reader, context: ContextDep) -> JobView:
    """One job with its progress."""
    with context.database.read() as connection:
        return JobView.of(get_job(connection, job, principal))


@router.post("/{job}/cancel", status_code=202, response_model=JobView)
def cancel_job(
    job: JobPath, principal: Trainer, context: ContextDep, key: RequestKeyDep
) -> JSONResponse:
    """Ask for a job to be stopped. 409 once its candidate is being judged, or it has ended."""
    word = Word(principal, context.clock())
    return _intervene(context, key, job, word, actions.cancel)


@router.post("/{job}/retry", status_code=202, response_model=JobView)
def retry_job(
    job: JobPath, principal: Trainer, context: ContextDep, key: RequestKeyDep
) -> JSONResponse:
    """Give a failed job new attempts."""
    word = Word(principal, context.clock())
    return _intervene(context, key, job, word, actions.retry)


@router.post("/{job}/approve", status_code=202, response_model=JobView)
def approve_job(
    job: JobPath, body: ReasonBody, principal: Trainer, context: ContextDep, key: RequestKeyDep
) -> JSONResponse:
    """Publish a candidate that is held for approval, or that was rejected by the policy.

    A rejected one can be approved while its parent is the newest version and it is still kept.
    """
    word = Word(principal, context.clock(), body.reason)
    return _intervene(context, key, job, word, actions.approve)


@router.post("/{job}/reject", status_code=202, response_model=JobView)
def reject_job(
    job: JobPath, body: ReasonBody, principal: Trainer, context: ContextDep, key: RequestKeyDep
) -> JSONResponse:
    """Say no to a candidate that is held for approval."""
    word = Word(principal, context.clock(), body.reason)
    return _intervene(context, key, job, word, actions.reject)


def _intervene(
    context: Context, key: RequestKey | None, job: str, word: Word, intervention: Intervention
) -> JSONResponse:
    def effect(connection: Connection) -> AnswerRecord:
        changed = intervention(connection, job, word)
        return record(key, 202, JobView.of(changed), f"/v1/jobs/{job}")

    return answer(context, key, effect)
