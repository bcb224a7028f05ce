"""Jobs: read, cancel, retry, approve, reject."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from cmcl.contract.job import Progress
from service.api.dependencies import (
    ContextDep,
    IdempotencyKey,
    IdempotencyKeyDep,
    JobPath,
    ModelQuery,
    Reader,
    ReasonBody,
    Trainer,
)
from service.api.idempotency import respond, response_record
from service.api.pagination import Limit, NumberCursor, Page, page
from service.context import Context
from service.database.queries import jobs
from service.database.rows import (
    JobRecord,
    ResponseRecord,
)
from service.jobs import actions
from service.jobs.actions import ActorNote
from service.lookup import get_job
from service.states import FailureReason, JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class ApprovalView(BaseModel):
    """A user's decision about a candidate."""

    model_config = ConfigDict(from_attributes=True)

    decision: Literal["approved", "rejected"]
    actor: str
    reason: str
    at: datetime


class JobView(BaseModel):
    """A job and its state."""

    id: str
    model: str
    dataset: str
    state: JobState
    reason: FailureReason | None = Field(description="why it was rejected or has failed")
    message: str | None = Field(description="the reason as a sentence, or what it waits for")
    attempt: int = Field(description="number of the newest attempt; 0 before the first")
    progress: Progress | None
    approval: ApprovalView | None = Field(description="a user's decision about its candidate")
    parent_version: int | None = Field(description="version that it starts from")
    version: int | None = Field(description="version that it creates")
    cancel_requested: bool
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: JobRecord) -> Self:
        """Create it from a record."""
        values = {field: getattr(job, field) for field in cls.model_fields}
        return cls.model_validate(values)


Action = Callable[[Connection, str, ActorNote], JobRecord]


@router.get("")
def list_jobs(
    principal: Reader,
    context: ContextDep,
    cursor: NumberCursor,
    model: ModelQuery = None,
    state: Annotated[JobState | None, Query()] = None,
    limit: Limit = 50,
) -> Page[JobView]:
    """List jobs in the order of their arrival."""
    where = {"owner": principal.owner, "model": model, "state": state}
    with context.database.read() as connection:
        found = jobs.page(connection, where, cursor, limit + 1)
    return page(found, limit, JobView.of, lambda job: job.sequence)


@router.get("/{job}")
def read_job(job: JobPath, principal: Reader, context: ContextDep) -> JobView:
    """Read a job with its progress."""
    with context.database.read() as connection:
        return JobView.of(get_job(connection, job, principal))


@router.post("/{job}/cancel", status_code=202, response_model=JobView)
def cancel_job(
    job: JobPath, principal: Trainer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Cancel a job. 409 if its candidate is being judged, or it has ended."""
    note = ActorNote(principal, context.clock())
    return _respond(context, key, job, note, actions.cancel)


@router.post("/{job}/retry", status_code=202, response_model=JobView)
def retry_job(
    job: JobPath, principal: Trainer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Retry a failed job with new attempts."""
    note = ActorNote(principal, context.clock())
    return _respond(context, key, job, note, actions.retry)


@router.post("/{job}/approve", status_code=202, response_model=JobView)
def approve_job(
    job: JobPath, body: ReasonBody, principal: Trainer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Publish a candidate that is held for approval, or that the policy rejected.

    A rejected one can be approved while its parent is the newest version and its files are kept.
    """
    note = ActorNote(principal, context.clock(), body.reason)
    return _respond(context, key, job, note, actions.approve)


@router.post("/{job}/reject", status_code=202, response_model=JobView)
def reject_job(
    job: JobPath, body: ReasonBody, principal: Trainer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Reject a candidate that is held for approval."""
    note = ActorNote(principal, context.clock(), body.reason)
    return _respond(context, key, job, note, actions.reject)


def _respond(
    context: Context, key: IdempotencyKey | None, job: str, note: ActorNote, action: Action
) -> JSONResponse:
    def effect(connection: Connection) -> ResponseRecord:
        changed = action(connection, job, note)
        return response_record(key, 202, JobView.of(changed), f"/v1/jobs/{job}")

    return respond(context, key, effect)
