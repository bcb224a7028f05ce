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
    """Who says something about a job, when, and why."""

    principal: Principal
    now: datetime
    reason: str = ""


def cancel(connection: Connection, job_id: str, note: ActorNote) -> JobRecord:
    """Cancel a job that waits at once; ask the reconciler to stop one that is under way.

    Raises NotFound, and Conflict if it is too late.
    """
    job = get_job(connection, job_id, note.principal)
    if job.state == JobState.CANCELLED or job.cancel_requested:
        return job
    if job.state not in CANCELLABLE:
        raise Conflict(f"job {job.id} is {job.state}: it is too late to cancel it")
    if not _stop(connection, job, note.now):
        raise _moved_on(job)
    return get_job(connection, job_id, note.principal)


def retry(connection: Connection, job_id: str, note: ActorNote) -> JobRecord:
    """Queue a failed job again with new attempts. Raises NotFound and Conflict."""
    job = get_job(connection, job_id, note.principal)
    if job.state != JobState.FAILED:
        raise Conflict(f"job {job.id} is {job.state}; only a failed job can be tried again")
    # A deleted model has no jobs any more, and what was removed cannot be learned from.
    hold_model(connection, job.model, note.principal)
    if job.swept_at is not None:
        raise Conflict(f"what job {job.id} had read was removed; post the dataset again")
    _reclaim(connection, job, note.principal)
    if not jobs.retry(connection, job, note.now):
        raise _moved_on(job)
    return get_job(connection, job_id, note.principal)


def approve(connection: Connection, job_id: str, note: ActorNote) -> JobRecord:
    """Publish a candidate that is held, or one that was rejected while nothing followed it.

    Raises NotFound, and Conflict if the candidate is not there any more, or its parent is not the
    newest version any more.
    """
    job = get_job(connection, job_id, note.principal)
    if job.state not in (JobState.HELD, JobState.REJECTED):
        raise Conflict(f"job {job.id} is {job.state}; only a held or rejected one can be approved")
    if job.state == JobState.REJECTED:
        _check_can_follow(connection, job, note.principal)
        _reclaim(connection, job, note.principal)
    approval = _approval("approved", note)
    if not jobs.approve(connection, job, approval, note.now):
        raise _moved_on(job)
    return get_job(connection, job_id, note.principal)


def reject(connection: Connection, job_id: str, note: ActorNote) -> JobRecord:
    """Say no to a candidate that is held. Raises NotFound and Conflict."""
    job = get_job(connection, job_id, note.principal)
    if job.state != JobState.HELD:
        raise Conflict(f"job {job.id} is {job.state}; only a held one can be rejected")
    if not jobs.reject(connection, job, _approval("rejected", note), note.now):
        raise _moved_on(job)
    datasets.release(connection, job.dataset)
    return get_job(connection, job_id, note.principal)


def _stop(connection: Connection, job: JobRecord, now: datetime) -> bool:
    """What waits, for its turn or for somebody's note, has nothing that runs anywhere."""
    if job.state not in (JobState.QUEUED, JobState.HELD):
        return jobs.request_cancel(connection, job, now)
    # The job before its dataset, as everybody who ends one: two at once must not wait for each other.
    if not jobs.finish(connection, job, JobState.CANCELLED, now):
        return False
    datasets.release(connection, job.dataset)
    return True


def _reclaim(connection: Connection, job: JobRecord, principal: Principal) -> None:
    # Locked, so that nobody deletes it at this very moment.
    datasets.lock(connection, job.dataset)
    dataset = get_dataset(connection, job.dataset, principal)
    fingerprint = NewDataset.model_validate(dataset.request).fingerprint
    known_by = Fingerprints(fingerprint, dataset.content_fingerprint)
    same = datasets.find_same(connection, dataset.model, known_by)
    if same is not None and same.id != dataset.id:
        raise Conflict(f"the same dataset was posted again meanwhile: {same.id}")
    datasets.reclaim(connection, dataset.id, known_by.by_address)


def _check_can_follow(connection: Connection, job: JobRecord, principal: Principal) -> None:
    # Locked, so that no other job of the model begins at this very moment.
    models.lock(connection, job.model)
    head = get_model(connection, job.model, principal).head
    if head != (job.parent_version or 0):
        raise Conflict(
            f"job {job.id} grew from version {job.parent_version}, the newest is {head} now; "
            "post the dataset again to learn it from there"
        )
    if job.swept_at is not None:
        raise Conflict(f"the candidate of job {job.id} was removed; post the dataset again")
    if jobs.is_any_in_flight(connection, job.model):
        raise Conflict(f"another job of {job.model!r} is under way, from the same version")


def _approval(decision: Literal["approved", "rejected"], note: ActorNote) -> Approval:
    return Approval(decision, note.principal.name, note.reason, note.now)


def _moved_on(job: JobRecord) -> Conflict:
    return Conflict(f"job {job.id} moved on at this very moment; look at it and try again")
