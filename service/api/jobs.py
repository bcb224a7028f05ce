"""Jobs: read, cancel, retry, approve, reject."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from cmcl.contract.dataset import RejectedRow
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.job import JobKind, Progress, VersionRef
from cmcl.contract.prepare import DatasetReport, PrepareProgress
from cmcl.contract.version import EvaluationResult
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
from service.core.states import FailureReason, JobState
from service.database.queries import jobs
from service.database.rows import JobRow, PreparedRows, ResponseRow
from service.jobs import transitions
from service.jobs.scheduler import why_it_waits
from service.jobs.transitions import ActorNote
from service.registry.combining import Requested

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class ApprovalView(BaseModel):
    """A user's decision about a candidate."""

    model_config = ConfigDict(from_attributes=True)

    decision: Literal["approved", "rejected"]
    actor: str
    reason: str
    at: datetime


class RejectedRowsView(BaseModel):
    """Rows that were left out, or for which the dataset cannot be used."""

    rows: int
    first: tuple[RejectedRow, ...] = Field(
        description="the first 20; GET /v1/datasets/{dataset}/rejected-rows has all"
    )


Encoders = dict[str, EncoderIdentity | Literal["undeclared"]]


class JobView(BaseModel):
    """A job and its state."""

    id: str
    model: str
    kind: JobKind = Field(
        description="learn: the next version learns a dataset; unlearn: it is one that never saw the dataset; "
        "merge: it is one that has learned what two branches have; evaluate: a dataset is measured, and no version made"
    )
    dataset: str | None = Field(description="that it learns or unlearns; null: it merges")
    dataset_name: str = Field(
        description="of a merge, the version that it adds, as `model@version`"
    )
    merges: VersionRef | None = Field(description="version of another model that a merge adds")
    dry_run: bool
    state: JobState
    reason: FailureReason | None = Field(description="why it was rejected or has failed")
    message: str | None = Field(description="the reason as a sentence, or what it waits for")
    attempt: int = Field(description="number of the newest attempt; 0 before the first")
    progress: Progress | None = Field(description="of the newest attempt")
    preparation: PrepareProgress | None = Field(
        description="progress of the preparation of its rows, as of the last one"
    )
    rejected: RejectedRowsView | None = Field(description="null if there are none, as far as known")
    warnings: tuple[str, ...] = Field(
        description="about rows that are used, such as pictures of one flat colour; of a dry run, its report has them"
    )
    encoders: Encoders | None = Field(
        description="by modality of the pair: the encoder of its features; null until they are prepared"
    )
    report: DatasetReport | None = Field(description="the result of a dry run")
    evaluation: EvaluationResult | None = Field(
        description="recall of the live version on a dataset that is measured only"
    )
    approval: ApprovalView | None = Field(description="a user's decision about its candidate")
    parent_version: int | None = Field(description="version that it starts from")
    version: int | None = Field(description="version that it creates")
    cancel_requested: bool
    revision: int = Field(
        description="grows with each change of its state and with a request to cancel it; in quotes, the ETag for If-Match"
    )
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: JobRow) -> Self:
        """Create it from a record."""
        made = ("preparation", "rejected", "warnings", "encoders")
        values = {field: getattr(job, field) for field in cls.model_fields if field not in made}
        return cls.model_validate(
            {
                **values,
                "preparation": job.prepare_progress,
                "rejected": rejected_view(job.prepared),
                "warnings": job.prepared.warnings if job.prepared else (),
                "encoders": _encoders_view(job.prepared),
            }
        )


def accepted_job(found: Requested, key: IdempotencyKey | None = None) -> JSONResponse:
    """The response to a request for a job that reads no rows."""
    return Outcome(accepted_record(found, key)).response()


def accepted_record(found: Requested, key: IdempotencyKey | None = None) -> ResponseRow:
    """The same, to be stored for an idempotency key."""
    status = 202 if found.is_new else 200
    return response_row(key, status, JobView.of(found.job), f"/v1/jobs/{found.job.id}")


def rejected_view(prepared: PreparedRows | None) -> RejectedRowsView | None:
    """The rejected rows; None if there are none."""
    if prepared is None or prepared.rejected_rows == 0:
        return None
    return RejectedRowsView(rows=prepared.rejected_rows, first=prepared.rejected)


def _encoders_view(prepared: PreparedRows | None) -> Encoders | None:
    if prepared is None or not prepared.encoders:
        return None
    return {modality: each or "undeclared" for modality, each in prepared.encoders.items()}


Action = Callable[[Connection, str, ActorNote], JobRow]


@router.get("")
def list_jobs(
    principal: Reader,
    context: ContextDep,
    seek: NumberSeek,
    model: ModelQuery = None,
    state: Annotated[JobState | None, Query()] = None,
) -> Page[JobView]:
    """List jobs in the order of their arrival; with `order=desc`, the newest first."""
    where = {"owner": principal.owner, "model": model, "state": state}
    with context.database.read() as connection:
        found = jobs.page(connection, where, seek.peek())
    return page(found, seek, JobView.of, lambda job: job.sequence)


@router.get("/{job}")
def read_job(job: JobPath, principal: Reader, context: ContextDep) -> JobView:
    """Read a job with its progress, and with what it waits for."""
    with context.database.read() as connection:
        found = get_job(connection, job, principal)
    why = why_it_waits(context, found)
    return JobView.of(found if why is None else replace(found, message=why))


@router.post("/{job}/cancel", status_code=202, response_model=JobView)
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


@router.post("/{job}/retry", status_code=202, response_model=JobView)
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


@router.post("/{job}/approve", status_code=202, response_model=JobView)
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


@router.post("/{job}/reject", status_code=202, response_model=JobView)
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
        return response_row(key, 202, JobView.of(changed), f"/v1/jobs/{job}")

    return respond(context, key, effect)
