"""Attempts as Ray jobs. The only file of the control plane that imports Ray.

The client is made on first use, because making it is a network call already. A Ray whose clients
need a token (RAY_AUTH_MODE, RAY_AUTH_TOKEN) is served by Ray's own client from the environment.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import requests
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from service.launchers.port import (
    LauncherRefused,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
)

_SECONDS_PER_CALL = 30
_STATES = {
    JobStatus.PENDING: LaunchState.PENDING,
    JobStatus.RUNNING: LaunchState.RUNNING,
    JobStatus.SUCCEEDED: LaunchState.SUCCEEDED,
    JobStatus.FAILED: LaunchState.FAILED,
    JobStatus.STOPPED: LaunchState.STOPPED,
}
# Nothing is reserved for the driver: it waits while the ranks work, and any share of a CPU would
# keep the last rank from fitting on a cluster with exactly as many CPUs as ranks.
_DRIVER_CPUS = 0
_LONGEST_MESSAGE = 2000


class _Client(JobSubmissionClient):
    """Ray's client waits for ever by default; the reconciler has other models to look after."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_SECONDS_PER_CALL, **options)


class RayJobLauncher:
    """Launcher over Ray's Jobs API."""

    def __init__(self, address: str, connect: Callable[[str], Any] = _Client) -> None:
        self._address = address
        self._connect = connect
        self._client: Any = None

    def submit(self, submission_id: str, command: Sequence[str]) -> None:
        """See the port."""
        with self._translated():
            try:
                self._connected().submit_job(
                    submission_id=submission_id,
                    entrypoint=shlex.join(command),
                    entrypoint_num_cpus=_DRIVER_CPUS,
                )
            except RuntimeError as error:
                # Ray raises RuntimeError for an id that is taken and for everything else, and the
                # text is no contract: whether the job is there is the question, so ask that.
                if self._find(submission_id) is None:
                    raise LauncherRefused(f"Ray did not take {submission_id}: {error}") from error

    def status(self, submission_id: str) -> LaunchStatus:
        """See the port."""
        with self._translated():
            job = self._find(submission_id)
        if job is None:
            return LaunchStatus(LaunchState.UNKNOWN, "Ray does not know this job")
        return LaunchStatus(_STATES[job.status], _shortened(job.message or ""))

    def stop(self, submission_id: str) -> None:
        """See the port."""
        with self._translated():
            try:
                self._connected().stop_job(submission_id)
            except RuntimeError:
                if self._find(submission_id) is not None:
                    raise

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


def _shortened(message: str) -> str:
    """Ray adds the end of the log: the first line says what happened, the last ones say why."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    first, _, rest = message.partition("\n")
    return f"{first[:_LONGEST_MESSAGE]}\n…{rest[-_LONGEST_MESSAGE:]}"
