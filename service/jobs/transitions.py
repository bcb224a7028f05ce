"""How a job changes: by a step of the reconciler, and by a user who cancels, retries, approves or rejects."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

from sqlalchemy import Connection

from cmcl.contract.api.jobs import Approval, FailureReason, JobState
from cmcl.contract.errors import StorageUnavailable
from service.auth.ownership import get_dataset, get_job, lock_model_shared
from service.context import Context
from service.core.errors import Conflict, DatabaseError, PreconditionFailed, StaleDatabase
from service.core.principal import Principal
from service.core.states import CANCELLABLE
from service.database.queries import datasets, jobs
from service.database.rows import Fingerprints, JobRow, PreparedRows
from service.datasets.intake import NewDataset
from service.launchers.port import LauncherError

T = TypeVar("T")


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


def set_message(context: Context, job: JobRow, message: str | None) -> None:
    """Set the job's message, if it is another one."""
    if message == job.message:
        return
    with context.database.write() as connection:
        jobs.set_message(connection, job, message)


def move(context: Context, job: JobRow, target: JobState, **changes: object) -> bool:
    """Move the job, with changes of other columns. False if another instance moved it first."""
    with context.database.write() as connection:
        return jobs.move(connection, job, target, context.clock(), **changes)


def fail(context: Context, job: JobRow, reason: FailureReason, message: str) -> None:
    """Fail the job; the user sees the reason and can retry."""
    move(context, job, JobState.FAILED, reason=reason, message=message)


def quarantine(
    context: Context, job: JobRow, message: str, rejected: PreparedRows | None = None
) -> bool:
    """Fail the job and quarantine its dataset. Returns whether this call did it.

    `rejected`: the rows that cannot be used, as far as they are known.
    """
    invalid = {"reason": FailureReason.INVALID_DATASET, "message": message}
    with context.database.write() as connection:
        moved = jobs.move(connection, job, JobState.FAILED, context.clock(), **invalid)
        if moved and job.own_dataset is not None:
            datasets.quarantine(connection, job.own_dataset, message)
            if rejected is not None:
                jobs.set_rejected(connection, job.id, rejected)
    return moved


@dataclass(frozen=True)
class ActorNote:
    """Who acts on a job, when, and why, and which revision of it they have seen (None: not stated)."""

    principal: Principal
    now: datetime
    reason: str = ""
    seen_revision: int | None = None


def cancel(connection: Connection, job_id: str, note: ActorNote) -> JobRow:
    """Cancel a waiting job at once; have the reconciler stop one that is running.

    Raises NotFound, PreconditionFailed, and Conflict if it is too late.
    """
    job = _get_as_seen(connection, job_id, note)
    if job.state == JobState.CANCELLED or job.cancel_requested:
        return job
    if job.state not in CANCELLABLE:
        raise Conflict(f"job {job.id} is {job.state}: it is too late to cancel it")
    if not _stop(connection, job, note.now):
        raise _changed(job)
    return get_job(connection, job_id, note.principal)


def retry(connection: Connection, job_id: str, note: ActorNote) -> JobRow:
    """Queue a failed or rejected job again, with another preparation and new attempts.

    Raises NotFound, PreconditionFailed and Conflict.
    """
    job = _get_as_seen(connection, job_id, note)
    if job.state not in (JobState.FAILED, JobState.REJECTED):
        raise Conflict(f"job {job.id} is {job.state}; only a failed or rejected job can be retried")
    # A deleted model has no jobs, and removed files cannot be trained on.
    lock_model_shared(connection, job.model, note.principal)
    if job.swept_at is not None:
        again = "request it again" if job.own_dataset is None else "post the dataset again"
        raise Conflict(f"the files of job {job.id} were removed; {again}")
    if job.own_dataset is not None:
        _reclaim(connection, job.own_dataset, note.principal)
    if not jobs.retry(connection, job, note.now):
        raise _changed(job)
    return get_job(connection, job_id, note.principal)


def approve(connection: Connection, job_id: str, note: ActorNote) -> JobRow:
    """Publish a held candidate. Raises NotFound, PreconditionFailed and Conflict."""
    job = _get_as_seen(connection, job_id, note)
    if job.state == JobState.REJECTED:
        raise Conflict(
            f"the candidate of job {job.id} was rejected; change the gate of {job.model!r} if it should pass, and "
            "retry the job"
        )
    if job.state != JobState.HELD:
        raise Conflict(f"job {job.id} is {job.state}; only a held one can be approved")
    approval = _approval("approved", note)
    if not jobs.move(connection, job, JobState.GATING, note.now, approval=approval):
        raise _changed(job)
    return get_job(connection, job_id, note.principal)


def reject(connection: Connection, job_id: str, note: ActorNote) -> JobRow:
    """Reject a held candidate. Raises NotFound, PreconditionFailed and Conflict."""
    job = _get_as_seen(connection, job_id, note)
    if job.state != JobState.HELD:
        raise Conflict(f"job {job.id} is {job.state}; only a held one can be rejected")
    approval = _approval("rejected", note)
    message = f"{approval.actor}: {approval.reason or 'no reason was given'}"
    by_hand = {"reason": FailureReason.REJECTED_BY_HAND, "message": message, "approval": approval}
    if not jobs.move(connection, job, JobState.REJECTED, note.now, **by_hand):
        raise _changed(job)
    return get_job(connection, job_id, note.principal)


def _get_as_seen(connection: Connection, job_id: str, note: ActorNote) -> JobRow:
    """The job, if it is as the actor has seen it. Raises NotFound, PreconditionFailed."""
    job = get_job(connection, job_id, note.principal)
    if note.seen_revision is not None and note.seen_revision != job.revision:
        raise PreconditionFailed(
            f"job {job.id} is {job.state} and has revision {job.revision}, not {note.seen_revision}; read it again"
        )
    return job


def _stop(connection: Connection, job: JobRow, now: datetime) -> bool:
    """Cancel at once if nothing runs, or else request it from the reconciler."""
    if job.state not in (JobState.QUEUED, JobState.PREPARED, JobState.HELD):
        return jobs.request_cancel(connection, job, now)
    return jobs.move(connection, job, JobState.CANCELLED, now)


def _reclaim(connection: Connection, name: str, principal: Principal) -> None:
    # Locked against concurrent deletion.
    datasets.lock(connection, name)
    dataset = get_dataset(connection, name, principal)
    fingerprint = NewDataset.model_validate(dataset.request).fingerprint
    known_by = Fingerprints(fingerprint, dataset.content_fingerprint)
    same = datasets.find_same(connection, dataset.model, known_by)
    if same is not None and same.id != dataset.id:
        raise Conflict(f"the same dataset has since been posted again: {same.id}")
    datasets.reclaim(connection, dataset.id, known_by.by_address)


def _approval(decision: Literal["approved", "rejected"], note: ActorNote) -> Approval:
    return Approval(decision=decision, actor=note.principal.name, reason=note.reason, at=note.now)


def _changed(job: JobRow) -> Conflict:
    return Conflict(f"job {job.id} changed concurrently; read it and try again")
