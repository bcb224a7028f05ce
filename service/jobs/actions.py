"""What users do to jobs: cancel, retry, approve and reject."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection

from service.database.queries import datasets, jobs, models
from service.database.rows import Approval, Fingerprints, JobRecord
from service.datasets.request import NewDataset
from service.errors import Conflict
from service.lookup import get_dataset, get_job, get_model, hold_model
from service.principal import Principal
from service.states import CANCELLABLE, JobState


@dataclass(frozen=True)
class ActorNote:
    """Who acts on a job, when, and why."""

    principal: Principal
    now: datetime
    reason: str = ""


def cancel(connection: Connection, job_id: str, note: ActorNote) -> JobRecord:
    """Cancel a waiting job at once; have the reconciler stop one that is running.

    Raises NotFound, and Conflict if it is too late.
    """
    job = get_job(connection, job_id, note.principal)
    if job.state == JobState.CANCELLED or job.cancel_requested:
        return job
    if job.state not in CANCELLABLE:
        raise Conflict(f"job {job.id} is {job.state}: it is too late to cancel it")
    if not _stop(connection, job, note.now):
        raise _changed(job)
    return get_job(connection, job_id, note.principal)


def retry(connection: Connection, job_id: str, note: ActorNote) -> JobRecord:
    """Queue a failed job again with new attempts. Raises NotFound and Conflict."""
    job = get_job(connection, job_id, note.principal)
    if job.state != JobState.FAILED:
        raise Conflict(f"job {job.id} is {job.state}; only a failed job can be retried")
    # A deleted model has no jobs, and removed files cannot be trained on.
    hold_model(connection, job.model, note.principal)
    if job.swept_at is not None:
        raise Conflict(f"the files of job {job.id} were removed; post the dataset again")
    _reclaim(connection, job, note.principal)
    if not jobs.retry(connection, job, note.now):
        raise _changed(job)
    return get_job(connection, job_id, note.principal)


def approve(connection: Connection, job_id: str, note: ActorNote) -> JobRecord:
    """Publish a held candidate, or a rejected one if its parent is still the newest version.

    Raises NotFound, and Conflict if the candidate was removed or its parent is no longer the newest
    version.
    """
    job = get_job(connection, job_id, note.principal)
    if job.state not in (JobState.HELD, JobState.REJECTED):
        raise Conflict(f"job {job.id} is {job.state}; only a held or rejected one can be approved")
    if job.state == JobState.REJECTED:
        _check_can_follow(connection, job, note.principal)
        _reclaim(connection, job, note.principal)
    approval = _approval("approved", note)
    if not jobs.approve(connection, job, approval, note.now):
        raise _changed(job)
    return get_job(connection, job_id, note.principal)


def reject(connection: Connection, job_id: str, note: ActorNote) -> JobRecord:
    """Reject a held candidate. Raises NotFound and Conflict."""
    job = get_job(connection, job_id, note.principal)
    if job.state != JobState.HELD:
        raise Conflict(f"job {job.id} is {job.state}; only a held one can be rejected")
    if not jobs.reject(connection, job, _approval("rejected", note), note.now):
        raise _changed(job)
    datasets.release(connection, job.dataset)
    return get_job(connection, job_id, note.principal)


def _stop(connection: Connection, job: JobRecord, now: datetime) -> bool:
    """Cancel at once if nothing runs, or else request it from the reconciler."""
    if job.state not in (JobState.QUEUED, JobState.HELD):
        return jobs.request_cancel(connection, job, now)
    # The job before its dataset, the lock order of everyone who ends a job, to avoid deadlocks.
    if not jobs.finish(connection, job, JobState.CANCELLED, now):
        return False
    datasets.release(connection, job.dataset)
    return True


def _reclaim(connection: Connection, job: JobRecord, principal: Principal) -> None:
    # Locked against concurrent deletion.
    datasets.lock(connection, job.dataset)
    dataset = get_dataset(connection, job.dataset, principal)
    fingerprint = NewDataset.model_validate(dataset.request).fingerprint
    known_by = Fingerprints(fingerprint, dataset.content_fingerprint)
    same = datasets.find_same(connection, dataset.model, known_by)
    if same is not None and same.id != dataset.id:
        raise Conflict(f"the same dataset has since been posted again: {same.id}")
    datasets.reclaim(connection, dataset.id, known_by.by_address)


def _check_can_follow(connection: Connection, job: JobRecord, principal: Principal) -> None:
    # Locked against another job of the model starting concurrently.
    models.lock(connection, job.model)
    head = get_model(connection, job.model, principal).head
    if head != (job.parent_version or 0):
        raise Conflict(
            f"job {job.id} was trained from version {job.parent_version}, but the newest is now {head}; "
            "post the dataset again to train from there"
        )
    if job.swept_at is not None:
        raise Conflict(f"the candidate of job {job.id} was removed; post the dataset again")
    if jobs.is_any_in_flight(connection, job.model):
        raise Conflict(f"another job of {job.model!r} is in progress from the same version")


def _approval(decision: Literal["approved", "rejected"], note: ActorNote) -> Approval:
    return Approval(decision, note.principal.name, note.reason, note.now)


def _changed(job: JobRecord) -> Conflict:
    return Conflict(f"job {job.id} changed concurrently; read it and try again")
