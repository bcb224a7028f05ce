"""Ray's Jobs API as it was found to behave (Ray 2.60), in memory."""

from dataclasses import dataclass

from ray.job_submission import JobStatus


@dataclass
class FakeJob:
    """Ray's record of a job; drivers that nobody submitted have no submission id."""

    submission_id: str | None
    status: JobStatus
    message: str | None = None
    entrypoint: str = ""


class FakeRayJobs:
    """Raises RuntimeError for everything that it does not like, as the real client does."""

    def __init__(self) -> None:
        self.jobs = [FakeJob(None, JobStatus.RUNNING, "a driver")]
        self.options: dict[str, object] = {}
        self.error: Exception | None = None
        self.refuses = False

    def submit_job(self, *, submission_id: str, entrypoint: str, **options: object) -> str:
        """As the client."""
        self._answer()
        if self.refuses or any(job.submission_id == submission_id for job in self.jobs):
            raise RuntimeError("Request failed with status code 500: something in prose")
        self.options = options
        self.jobs.append(FakeJob(submission_id, JobStatus.PENDING, entrypoint=entrypoint))
        return submission_id

    def get_job_info(self, submission_id: str) -> FakeJob:
        """As the client."""
        self._answer()
        for job in self.jobs:
            if job.submission_id == submission_id:
                return job
        raise RuntimeError("Request failed with status code 404: something in prose")

    def list_jobs(self) -> list[FakeJob]:
        """As the client."""
        self._answer()
        return self.jobs

    def stop_job(self, submission_id: str) -> bool:
        """As the client; a job that has ended stays what it was."""
        job = self.get_job_info(submission_id)
        was_running = job.status in (JobStatus.PENDING, JobStatus.RUNNING)
        if was_running:
            job.status = JobStatus.STOPPED
        return was_running

    def delete_job(self, submission_id: str) -> bool:
        """As the client, which refuses for one that has not ended."""
        job = self.get_job_info(submission_id)
        if not job.status.is_terminal():
            raise RuntimeError("Request failed with status code 500: not in a terminal state")
        self.jobs.remove(job)
        return True

    def end(self, submission_id: str, status: JobStatus, message: str = "") -> None:
        """What became of it."""
        job = self.get_job_info(submission_id)
        job.status, job.message = status, message

    def _answer(self) -> None:
        if self.error is not None:
            raise self.error
