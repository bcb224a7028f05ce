"""What users do to jobs: cancel and retry."""

from datetime import datetime

from sqlalchemy import Connection

from service.control.intake import NewDataset, get_dataset, get_job
from service.database import datasets, jobs
from service.database.rows import JobRecord
from service.errors import Conflict
from service.states import CANCELLABLE, JobState


def cancel(connection: Connection, job_id: str, now: datetime) -> JobRecord:
    """Cancel a waiting job at once; ask the reconciler to stop one that is in flight.

    Raises NotFound, and Conflict if it is too late.
    """
    job = get_job(connection, job_id)
    if job.state == JobState.CANCELLED or job.cancel_requested:
        return job
    if job.state not in CANCELLABLE:
        raise Conflict(f"job {job.id} is {job.state}: it is too late to cancel it")
    if not _stop(connection, job, now):
        raise Conflict(f"job {job.id} moved on at this very moment; look at it and try again")
    return get_job(connection, job_id)


def retry(connection: Connection, job_id: str, now: datetime) -> JobRecord:
    """Queue a failed job again with new attempts. Raises NotFound and Conflict."""
    job = get_job(connection, job_id)
    if job.state != JobState.FAILED:
        raise Conflict(f"job {job.id} is {job.state}; only a failed job can be tried again")
    dataset = get_dataset(connection, job.dataset)
    fingerprint = NewDataset.model_validate(dataset.request).fingerprint
    same = datasets.find_same(connection, dataset.model, fingerprint)
    if same is not None:
        raise Conflict(f"the same dataset was posted again meanwhile: {same.id}")
    datasets.reclaim(connection, dataset.id, fingerprint)
    if not jobs.retry(connection, job, now):
        raise Conflict(f"job {job.id} moved on at this very moment; look at it and try again")
    return get_job(connection, job_id)


def _stop(connection: Connection, job: JobRecord, now: datetime) -> bool:
    if job.state != JobState.QUEUED:
        return jobs.request_cancel(connection, job)
    datasets.release(connection, job.dataset)
    return jobs.finish(connection, job, JobState.CANCELLED, now)
