"""Jobs: read, cancel, retry, approve, reject."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from cmcl.contract.api.jobs import Job, JobState, RejectedSummary
from service.api.dependencies import (
    ContextDep,
    IdempotencyKey,
    IdempotencyKeyDep,
    JobPath,
    ModelQuery,
    Reader,
    ReasonBody,
    SeenRevision,
    Trainer,
)
from service.api.idempotency import Outcome, respond, response_row
from service.api.pagination import NumberSeek, Page, page
from service.auth.ownership import get_job
from service.context import Context
from service.database.queries import jobs
from service.database.rows import JobRow, PreparedRows, ResponseRow
from service.jobs import transitions
from service.jobs.scheduler import why_it_waits
from service.jobs.transitions import ActorNote
from service.registry.combining import Requested

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


def to_job(job: JobRow) -> Job:
    """Convert a row."""
    made = ("preparation", "rejected", "warnings", "encoders")
    prepared = job.prepared
    encoders = prepared.encoders if prepared else {}
    return Job.model_validate(
        {
            **{field: getattr(job, field) for field in Job.model_fields if field not in made},
            "approval": job.approval and vars(job.approval),
            "preparation": job.prepare_progress,
            "rejected": to_rejected(prepared),
            "warnings": prepared.warnings if prepared else (),
            "encoders": {name: each or "undeclared" for name, each in encoders.items()} or None,
        }
    )


def accepted_job(found: Requested, key: IdempotencyKey | None = None) -> JSONResponse:
    """The response to a request for a job that reads no rows."""
    return Outcome(accepted_record(found, key)).response()


def accepted_record(found: Requested, key: IdempotencyKey | None = None) -> ResponseRow:
    """The same, to be stored for an idempotency key."""
    status = 202 if found.is_new else 200
    return response_row(key, status, to_job(found.job), f"/v1/jobs/{found.job.id}")


def to_rejected(prepared: PreparedRows | None) -> RejectedSummary | None:
    """Return the rows that were left out; None if there are none."""
    if prepared is None or prepared.rejected_rows == 0:
        return None
    return RejectedSummary(rows=prepared.rejected_rows, first=prepared.rejected)


Action = Callable[[Connection, str, ActorNote], JobRow]


@router.get("")
def list_jobs(
    principal: Reader,
    context: ContextDep,
    seek: NumberSeek,
    model: ModelQuery = None,
    state: Annotated[JobState | None, Query()] = None,
) -> Page[Job]:
    """List jobs in the order of their arrival; with `order=desc`, the newest first."""
    where = {"owner": principal.owner, "model": model, "state": state}
    with context.database.read() as connection:
        found = jobs.page(connection, where, seek.peek())
    return page(found, seek, to_job, lambda job: job.sequence)


@router.get("/{job}")
def read_job(job: JobPath, principal: Reader, context: ContextDep) -> Job:
    """Read a job with its progress, and with what it waits for."""
    with context.database.read() as connection:
        found = get_job(connection, job, principal)
    why = why_it_waits(context, found)
    return to_job(found if why is None else replace(found, message=why))


@router.post("/{job}/cancel", status_code=202, response_model=Job)
def cancel_job(
    job: JobPath,
    principal: Trainer,
    context: ContextDep,
    key: IdempotencyKeyDep,
    seen: SeenRevision = None,
) -> JSONResponse:
    """Cancel a job. 409 if its candidate is being judged, or it has ended."""
    note = ActorNote(principal, context.clock(), seen_revision=seen)
    return _respond(context, key, job, note, transitions.cancel)


@router.post("/{job}/retry", status_code=202, response_model=Job)
def retry_job(
    job: JobPath,
    principal: Trainer,
    context: ContextDep,
    key: IdempotencyKeyDep,
    seen: SeenRevision = None,
) -> JSONResponse:
    """Retry a failed or rejected job with new attempts. The next candidate is judged by the gate of that time."""
    note = ActorNote(principal, context.clock(), seen_revision=seen)
    return _respond(context, key, job, note, transitions.retry)


@router.post("/{job}/approve", status_code=202, response_model=Job)
def approve_job(
    job: JobPath,
    body: ReasonBody,
    principal: Trainer,
    context: ContextDep,
    key: IdempotencyKeyDep,
    seen: SeenRevision = None,
) -> JSONResponse:
    """Publish a candidate that is held for approval. 409 for a rejected one: change the gate, and retry its job."""
    note = ActorNote(principal, context.clock(), body.reason, seen)
    return _respond(context, key, job, note, transitions.approve)


@router.post("/{job}/reject", status_code=202, response_model=Job)
def reject_job(
    job: JobPath,
    body: ReasonBody,
    principal: Trainer,
    context: ContextDep,
    key: IdempotencyKeyDep,
    seen: SeenRevision = None,
) -> JSONResponse:
    """Reject a candidate that is held for approval."""
    note = ActorNote(principal, context.clock(), body.reason, seen)
    return _respond(context, key, job, note, transitions.reject)


def _respond(
    context: Context, key: IdempotencyKey | None, job: str, note: ActorNote, action: Action
) -> JSONResponse:
    def effect(connection: Connection) -> ResponseRow:
        changed = action(connection, job, note)
        return response_row(key, 202, to_job(changed), f"/v1/jobs/{job}")

    return respond(context, key, effect)
