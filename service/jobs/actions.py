"""What users do to jobs: cancel, retry, approve and reject."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection

from service.auth.ownership import get_dataset, get_job, hold_model
from service.core.errors import Conflict, PreconditionFailed
from service.core.principal import Principal
from service.core.states import CANCELLABLE, JobState
from service.database.queries import datasets, jobs
from service.database.rows import Approval, Fingerprints, JobRow
from service.datasets.request import NewDataset


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
    hold_model(connection, job.model, note.principal)
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
    if not jobs.approve(connection, job, approval, note.now):
        raise _changed(job)
    return get_job(connection, job_id, note.principal)


def reject(connection: Connection, job_id: str, note: ActorNote) -> JobRow:
    """Reject a held candidate. Raises NotFound, PreconditionFailed and Conflict."""
    job = _get_as_seen(connection, job_id, note)
    if job.state != JobState.HELD:
        raise Conflict(f"job {job.id} is {job.state}; only a held one can be rejected")
    if not jobs.reject(connection, job, _approval("rejected", note), note.now):
        raise _changed(job)
    if job.own_dataset is not None:
        datasets.release(connection, job.own_dataset)
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
    # The job before its dataset, the lock order of everyone who ends a job, to avoid deadlocks.
    if not jobs.finish(connection, job, JobState.CANCELLED, now):
        return False
    if job.own_dataset is not None:
        datasets.release(connection, job.own_dataset)
    return True


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
    return Approval(decision, note.principal.name, note.reason, note.now)


def _changed(job: JobRow) -> Conflict:
    return Conflict(f"job {job.id} changed concurrently; read it and try again")
