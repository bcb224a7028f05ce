"""Attempts as Ray jobs, over Ray's Jobs API.

https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html. These are four
requests; Ray's own client would bring all of Ray into the control plane, which starts nothing on it.
"""

import os
import shlex
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import BaseModel, TypeAdapter

from service.launchers.port import (
    LauncherRefused,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    shortened,
)

# The reconciler has other models to look after.
_SECONDS_PER_CALL = 30
_JOBS = "/api/jobs/"


_DEFAULT = Path.home() / ".ray" / "auth_token"


@dataclass(frozen=True)
class Driver:
    """What a Ray job's driver is given, the same for all submissions of a site.

    By default nothing is reserved for it: it waits while the ranks work, and any share of a CPU would
    keep the last rank from fitting on a cluster with exactly as many CPUs as ranks. Ray then puts it
    on the head; with any reservation, on whichever node has room.
    """

    cpus: float = 0
    memory_bytes: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    node_labels: Mapping[str, str] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)


class RayToken(httpx.Auth):
    """Sends the token along. Files are read for each request, because a mounted Secret can change."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See httpx."""
        if token := self._token():
            request.headers["Authorization"] = f"Bearer {token}"
        yield request

    def _token(self) -> str:
        """Empty where none is asked for. Raises ValueError where one is, and there is none."""
        if self._environment.get("RAY_AUTH_MODE", "").lower() != "token":
            return ""
        if token := self._environment.get("RAY_AUTH_TOKEN", "").strip():
            return token
        path = Path(self._environment.get("RAY_AUTH_TOKEN_PATH") or _DEFAULT)
        try:
            return path.read_text().strip()
        except OSError as error:
            raise ValueError(
                f"RAY_AUTH_MODE is token, RAY_AUTH_TOKEN is not set, and {path} cannot be read "
                f"({error.strerror})"
            ) from error


class RayJob(BaseModel):
    """Ray's record of a job. Drivers that nobody submitted have one too, without a submission id."""

    status: Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
    submission_id: str | None = None
    message: str | None = None

    @property
    def launch_status(self) -> LaunchStatus:
        """The same, in the port's words."""
        return LaunchStatus(LaunchState(self.status.lower()), shortened(self.message or ""))


_RAY_JOBS = TypeAdapter(list[RayJob])


class RayJobLauncher:
    """Launcher over Ray's Jobs API.

    Ray knows no priorities between jobs: a submission's is a label, and what its command says of it
    orders the line for ranks that stay.
    """

    def __init__(
        self,
        address: str,
        driver: Driver = Driver(),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = address
        self._driver = driver
        self._http = httpx.Client(
            base_url=address,
            auth=RayToken(),
            timeout=_SECONDS_PER_CALL,
            follow_redirects=True,
            transport=transport,
        )

    def submit(self, submission: Submission) -> None:
        """See the port."""
        body = {
            "submission_id": submission.id,
            "entrypoint": shlex.join(submission.command),
            "metadata": dict(submission.labels),
            **_options(self._driver),
        }
        with self._translated():
            answer = self._http.post(_JOBS, json=body)
            # Ray answers 500 for an id that is taken and for much else, and the text is no contract:
            # whether the job is there is the question, so ask that.
            if not answer.is_success and self._find(submission.id) is None:
                words = f"Ray did not take {submission.id}: {_response_message(answer)}"
                raise LauncherRefused(words)

    def status(self, submission_id: str) -> LaunchStatus:
        """See the port."""
        with self._translated():
            job = self._find(submission_id)
        if job is None:
            return LaunchStatus(LaunchState.UNKNOWN, "Ray does not know this job")
        return job.launch_status

    def stop(self, submission_id: str) -> None:
        """See the port."""
        with self._translated():
            answer = self._http.post(f"{_JOBS}{submission_id}/stop")
            if not answer.is_success and self._find(submission_id) is not None:
                self._must_be_good(answer)

    def forget(self, submission_id: str) -> None:
        """See the port."""
        with self._translated():
            job = self._find(submission_id)
            if job is not None and job.launch_status.has_ended:
                self._must_be_good(self._http.delete(f"{_JOBS}{submission_id}"))

    def _find(self, submission_id: str) -> RayJob | None:
        """Ray's record of the job; None if there is none."""
        answer = self._http.get(f"{_JOBS}{submission_id}")
        if answer.status_code != httpx.codes.NOT_FOUND:
            return RayJob.model_validate_json(self._must_be_good(answer).content)
        # A proxy that does not find Ray says the same. The list tells whether it was Ray.
        jobs = _RAY_JOBS.validate_json(self._must_be_good(self._http.get(_JOBS)).content)
        return next((job for job in jobs if job.submission_id == submission_id), None)

    def _must_be_good(self, answer: httpx.Response) -> httpx.Response:
        if not answer.is_success:
            raise LauncherUnavailable(f"Ray at {self._address}: {_response_message(answer)}")
        return answer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What goes wrong on the way, in the port's words."""
        try:
            yield
        except (httpx.HTTPError, ValueError) as error:
            raise LauncherUnavailable(f"Ray at {self._address}: {error}") from error


def _response_message(answer: httpx.Response) -> str:
    """What it says: often a traceback, of which the end says why."""
    return f"{answer.status_code} {answer.reason_phrase}: {shortened(answer.text.strip())}"


def _options(driver: Driver) -> dict[str, Any]:
    """What Ray is asked for the driver. An absent option and an empty one differ: any that is there
    lets the driver leave the head."""
    asked = {
        "runtime_env": driver.runtime_env,
        "entrypoint_memory": driver.memory_bytes,
        "entrypoint_resources": driver.resources,
        "entrypoint_label_selector": driver.node_labels,
    }
    return {
        "entrypoint_num_cpus": driver.cpus,
        **{name: value for name, value in asked.items() if value},
    }
