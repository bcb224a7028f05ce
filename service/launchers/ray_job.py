"""Attempts as Ray jobs. The only file of the control plane that imports Ray.

The client is made on first use, because making it is a network call already. A Ray whose clients
need a token (RAY_AUTH_MODE, RAY_AUTH_TOKEN) is served by Ray's own client from the environment.
"""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from service.launchers.driver import Driver
from service.launchers.messages import shortened
from service.launchers.port import (
    LauncherRefused,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
)

_SECONDS_PER_CALL = 30
_STATES = {
    JobStatus.PENDING: LaunchState.PENDING,
    JobStatus.RUNNING: LaunchState.RUNNING,
    JobStatus.SUCCEEDED: LaunchState.SUCCEEDED,
    JobStatus.FAILED: LaunchState.FAILED,
    JobStatus.STOPPED: LaunchState.STOPPED,
}


class _Client(JobSubmissionClient):
    """Ray's client waits for ever by default; the reconciler has other models to look after."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_SECONDS_PER_CALL, **options)


class RayJobLauncher:
    """Launcher over Ray's Jobs API.

    Ray knows no priorities between jobs: a submission's is a label, and what its command says of it
    orders the line for ranks that stay.
    """

    def __init__(
        self,
        address: str,
        driver: Driver = Driver(),  # noqa: B008 - frozen
        connect: Callable[[str], Any] = _Client,
    ) -> None:
        self._address = address
        self._driver = driver
        self._connect = connect
        self._client: Any = None

    def submit(self, submission: Submission) -> None:
        """See the port."""
        with self._translated():
            try:
                self._connected().submit_job(
                    submission_id=submission.id,
                    entrypoint=shlex.join(submission.command),
                    metadata=dict(submission.labels),
                    **_options(self._driver),
                )
            except RuntimeError as error:
                # Ray raises RuntimeError for an id that is taken and for everything else, and the
                # text is no contract: whether the job is there is the question, so ask that.
                if self._find(submission.id) is None:
                    raise LauncherRefused(f"Ray did not take {submission.id}: {error}") from error

    def status(self, submission_id: str) -> LaunchStatus:
        """See the port."""
        with self._translated():
            job = self._find(submission_id)
        if job is None:
            return LaunchStatus(LaunchState.UNKNOWN, "Ray does not know this job")
        return LaunchStatus(_STATES[job.status], shortened(job.message or ""))

    def stop(self, submission_id: str) -> None:
        """See the port."""
        with self._translated():
            try:
                self._connected().stop_job(submission_id)
            except RuntimeError:
                if self._find(submission_id) is not None:
                    raise

    def forget(self, submission_id: str) -> None:
        """See the port."""
        with self._translated():
            job = self._find(submission_id)
            if job is not None and job.status.is_terminal():
                self._connected().delete_job(submission_id)

    def _find(self, submission_id: str) -> Any | None:
        """Ray's record of the job; None if there is none."""
        client = self._connected()
        try:
            return client.get_job_info(submission_id)
        except RuntimeError:
            # "No such job" and "something is broken" look alike here. The list tells them apart;
            # drivers that nobody submitted are in it too, without a submission id.
            jobs = [job for job in client.list_jobs() if job.submission_id == submission_id]
            return jobs[0] if jobs else None

    def _connected(self) -> Any:
        if self._client is None:
            self._client = self._connect(self._address)
        return self._client

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Ray's errors, in the port's words."""
        try:
            yield
        except (requests.RequestException, ConnectionError, RuntimeError, RayError) as error:
            raise LauncherUnavailable(f"Ray at {self._address}: {error}") from error


def _options(driver: Driver) -> dict[str, Any]:
    """What Ray is asked for the driver. An absent option and an empty one differ: any that is there
    lets the driver leave the head."""
    asked = {
        "runtime_env": driver.runtime_env,
        "entrypoint_memory": driver.memory_bytes,
        "entrypoint_resources": driver.resources,
        "entrypoint_label_selector": driver.node_labels,
    }
    return {"entrypoint_num_cpus": driver.cpus, **{name: it for name, it in asked.items() if it}}
