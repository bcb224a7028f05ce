"""Attempts on a Ray cluster: its driver, a Ray job, trains them with resident ranks.

The driver is submitted over Ray's Jobs API,
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html. Five requests suffice; Ray's own client
would pull all of Ray into the control plane. Attempts are requests and outcomes in object storage. A listing of the
requests shows what has not ended. An outcome is read by name, so that old ones cost nothing.
"""

import os
import shlex
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import AliasPath, BaseModel, Field, TypeAdapter

from cmcl.contract.errors import InvalidVersion, ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.contract.job import AttemptOutcome
from cmcl.storage import layout
from cmcl.storage.documents import document, read_document, write_document
from cmcl.storage.object_store import ObjectStore
from service.launchers.port import (
    LOG_LINES,
    LOG_SECONDS,
    ClusterResources,
    Launcher,
    LauncherRejected,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    end_of_log,
    shortened,
    status_of,
)

# The reconciler has other models to serve.
_SECONDS_PER_CALL = 30
_JOBS = "/api/jobs/"
# From the state API: `/api/jobs/<id>/logs` has only whole logs.
_LOG = "/api/v0/logs/file"
_NODES = "/api/v0/nodes"
# Ray's own bound.
_MOST_NODES = 10_000


_DEFAULT = Path.home() / ".ray" / "auth_token"


class RayToken(httpx.Auth):
    """Sends Ray's token. Files are read for each request, because a mounted Secret can change."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if token := self._token():
            request.headers["Authorization"] = f"Bearer {token}"
        yield request

    def _token(self) -> str:
        """The token; empty if none is required. Raises ValueError if it is required but missing."""
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
    """Ray's record of a job. Drivers started otherwise have one too, without a submission id."""

    status: Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
    submission_id: str | None = None
    message: str | None = None
    driver_node_id: str | None = None

    @property
    def launch_status(self) -> LaunchStatus:
        return LaunchStatus(LaunchState(self.status.lower()), shortened(self.message or ""))


_RAY_JOBS = TypeAdapter(list[RayJob])


class _Node(BaseModel):
    """A node in Ray's state API."""

    state: str
    resources_total: dict[str, float] = {}


class _Nodes(BaseModel):
    """Ray's list of nodes, also of those that are gone."""

    nodes: list[_Node] = Field(validation_alias=AliasPath("data", "result", "result"))


class RayJobLauncher:
    """Launcher over Ray's Jobs API."""

    def __init__(
        self,
        address: str,
        runtime_env: Mapping[str, Any] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = address
        self._runtime_env = dict(runtime_env or {})
        self._http = httpx.Client(
            base_url=address,
            auth=RayToken(),
            timeout=_SECONDS_PER_CALL,
            follow_redirects=True,
            transport=transport,
        )

    def submit(self, submission: Submission) -> None:
        body = {
            "submission_id": submission.id,
            "entrypoint": shlex.join(submission.command),
            "metadata": dict(submission.labels),
            # It reserves nothing, so that Ray runs it on the head: any share of a CPU would keep the last rank from
            # fitting on a cluster with exactly as many CPUs as ranks.
            "entrypoint_num_cpus": 0,
            **({"runtime_env": self._runtime_env} if self._runtime_env else {}),
        }
        with self._translated():
            answer = self._http.post(_JOBS, json=body)
            # Ray responds with 500 for an id that exists and for much else, and the text is not a
            # contract, so check whether the job exists.
            if not answer.is_success and self._find(submission.id) is None:
                message = f"Ray refused {submission.id}: {_response_message(answer)}"
                raise LauncherRejected(message)

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        with self._translated():
            known = {job.submission_id: job for job in self._listed()}
        unknown = LaunchStatus(LaunchState.UNKNOWN, "Ray does not know this job")
        return {
            name: known[name].launch_status if name in known else unknown for name in submission_ids
        }

    def stop(self, submission_id: str) -> None:
        with self._translated():
            answer = self._http.post(f"{_JOBS}{submission_id}/stop")
            if not answer.is_success and self._find(submission_id) is not None:
                self._check_success(answer)

    def forget(self, submission_id: str) -> None:
        with self._translated():
            job = self._find(submission_id)
            if job is not None and job.launch_status.has_ended:
                self._check_success(self._http.delete(f"{_JOBS}{submission_id}"))

    def log(self, submission_id: str) -> str:
        with self._translated():
            job = self._find(submission_id)
            # Ray has no log before the driver starts, nor after its node is gone.
            if job is None or job.driver_node_id is None:
                return ""
            asked = {
                "submission_id": submission_id,
                # Ray requires a node here, although the submission has one.
                "node_id": job.driver_node_id,
                "lines": str(LOG_LINES),
                "filter_ansi_code": "true",
            }
            with self._http.stream("GET", _LOG, params=asked, timeout=LOG_SECONDS) as answer:
                return end_of_log(answer.iter_bytes()) if answer.is_success else ""

    def resources(self) -> ClusterResources:
        with self._translated():
            answer = self._http.get(_NODES, params={"limit": _MOST_NODES}, timeout=LOG_SECONDS)
            found = _Nodes.model_validate_json(self._check_success(answer).content)
        totals = [node.resources_total for node in found.nodes if node.state == "ALIVE"]
        return ClusterResources(
            cpus=sum(total.get("CPU", 0.0) for total in totals),
            gpus=sum(total.get("GPU", 0.0) for total in totals),
            memory_bytes=sum(total.get("memory", 0.0) for total in totals),
        )

    def _find(self, submission_id: str) -> RayJob | None:
        """Ray's record of the job; None if there is none."""
        answer = self._http.get(f"{_JOBS}{submission_id}")
        if answer.status_code != httpx.codes.NOT_FOUND:
            return RayJob.model_validate_json(self._check_success(answer).content)
        # A proxy that does not find Ray responds the same. The list shows whether it was Ray.
        return next((job for job in self._listed() if job.submission_id == submission_id), None)

    def _listed(self) -> list[RayJob]:
        """All jobs that Ray has a record of."""
        return _RAY_JOBS.validate_json(self._check_success(self._http.get(_JOBS)).content)

    def _check_success(self, answer: httpx.Response) -> httpx.Response:
        if not answer.is_success:
            raise LauncherUnavailable(f"Ray at {self._address}: {_response_message(answer)}")
        return answer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, ValueError) as error:
            raise LauncherUnavailable(f"Ray at {self._address}: {error}") from error


def _response_message(answer: httpx.Response) -> str:
    """Status and text: often a traceback, whose end gives the cause."""
    return f"{answer.status_code} {answer.reason_phrase}: {shortened(answer.text.strip())}"


_RUNS = LaunchStatus(LaunchState.RUNNING)
_WAITS = LaunchStatus(LaunchState.PENDING, "waiting: the driver on the cluster is starting")
_UNKNOWN = LaunchStatus(LaunchState.UNKNOWN, "there is neither a request nor an outcome")


class DriverLauncher:
    """Launcher of attempts through the driver, which another launcher, `processes`, runs.

    `driver` returns the submission id of the newest driver. The next one takes up what a driver has left.
    """

    def __init__(self, store: ObjectStore, processes: Launcher, driver: Callable[[], str]) -> None:
        self._store = store
        self._processes = processes
        self._driver = driver
        # Those of the last list; an outcome is written once.
        self._outcomes: dict[str, AttemptOutcome] = {}

    def submit(self, submission: Submission) -> None:
        if submission.attempt is None:
            raise ValueError(f"{submission.id} is no attempt: the driver trains nothing else")
        with _translated():
            if self._outcome(submission.id) is None:
                write_document(
                    self._store, layout.attempt_request(submission.id), submission.attempt
                )

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        with _translated():
            requested = set(self._store.keys(layout.attempts()))
            names = {name: layout.attempt_request(name) in requested for name in submission_ids}
            ended = [name for name, is_requested in names.items() if not is_requested]
            found = {name: self._outcomes.get(name) or self._outcome(name) for name in ended}
        self._outcomes = {name: outcome for name, outcome in found.items() if outcome is not None}
        waiting = self._requested() if requested else _WAITS
        return {name: waiting if names[name] else _status(found[name]) for name in names}

    def stop(self, submission_id: str) -> None:
        with _translated():
            if not self._is_requested(submission_id):
                return
            try:
                key = layout.attempt_outcome(submission_id)
                self._store.create(key, document(AttemptOutcome(state="stopped"), key))
            except ObjectExists:
                pass  # It has ended by itself.
            self._store.delete(layout.attempt_request(submission_id))

    def forget(self, submission_id: str) -> None:
        with _translated():
            if not self._is_requested(submission_id):
                self._store.delete(layout.attempt_outcome(submission_id))
                self._outcomes.pop(submission_id, None)

    def log(self, submission_id: str) -> str:
        """Return the reason of a failure, with the traceback of a rank.

        The log of the driver has lines of other owners.
        """
        with _translated():
            outcome = self._outcome(submission_id)
        lines = outcome.message.splitlines(keepends=True) if outcome is not None else []
        return end_of_log(line.encode() for line in lines[-LOG_LINES:])

    def resources(self) -> ClusterResources | None:
        return self._processes.resources()

    def _requested(self) -> LaunchStatus:
        """The status of attempts without an outcome: they run while a driver does."""
        driver = status_of(self._processes, self._driver())
        return _RUNS if driver.state == LaunchState.RUNNING else _WAITS

    def _is_requested(self, submission_id: str) -> bool:
        try:
            self._store.size(layout.attempt_request(submission_id))
        except ObjectNotFound:
            return False
        return True

    def _outcome(self, submission_id: str) -> AttemptOutcome | None:
        try:
            key = layout.attempt_outcome(submission_id)
            return read_document(self._store, key, AttemptOutcome)
        except ObjectNotFound:
            return None
        except InvalidVersion as error:
            return AttemptOutcome(state="failed", message=str(error))


def _status(outcome: AttemptOutcome | None) -> LaunchStatus:
    if outcome is None:
        return _UNKNOWN
    return LaunchStatus(LaunchState(outcome.state), shortened(outcome.message))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StorageUnavailable as error:
        raise LauncherUnavailable(f"requests of attempts: {error}") from error
