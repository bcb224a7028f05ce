"""Ray's Jobs API as observed with Ray 2.60, over HTTP and in memory."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import httpx

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_OWN = ("submission_id", "entrypoint")


@dataclass
class FakeJob:
    """Ray's record of a job; drivers that were not submitted have no submission id."""

    submission_id: str | None
    status: str
    message: str | None = None
    entrypoint: str = ""
    driver_node_id: str | None = "node-1"


class FakeRayJobs:
    """A server of the Jobs API; errors are texts, as Ray's are."""

    def __init__(self) -> None:
        self.jobs = [FakeJob(None, "RUNNING", "a driver")]
        self.options: dict[str, Any] = {}
        # Outcome of every request, in place of a response of Ray.
        self.outage: httpx.Response | Exception | None = None
        self.refuses = False
        self.nodes: list[dict[str, Any]] = [
            {"state": "ALIVE", "resources_total": {"CPU": 4.0, "memory": 16e9, "node:1": 1.0}},
            {"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 2.0, "memory": 16e9}},
            {"state": "DEAD", "resources_total": {"CPU": 4.0, "memory": 16e9}},
        ]
        # Output of each driver; a missing one has no file yet.
        self.logs: dict[str, str] = {}
        self.headers = httpx.Headers()

    @property
    def transport(self) -> httpx.BaseTransport:
        """A transport that sends requests for any address to this server."""
        return httpx.MockTransport(self._answer)

    def end(self, submission_id: str, status: str, message: str = "") -> None:
        """Set the final state of a job."""
        job = self._job(submission_id)
        assert job is not None
        job.status, job.message = status, message

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.headers = request.headers
        if isinstance(self.outage, Exception):
            raise self.outage
        if self.outage is not None:
            return self.outage
        if request.url.path == "/api/v0/logs/file":
            return self._log(request.url.params)
        if request.url.path == "/api/v0/nodes":
            return httpx.Response(200, json={"data": {"result": {"result": self.nodes}}})
        path = request.url.path.removeprefix("/api/jobs/")
        if path:
            return self._answer_about(request.method, *path.split("/"))
        if request.method == "POST":
            return self._submit(json.loads(request.content))
        return httpx.Response(200, json=[asdict(job) for job in self.jobs])

    def _log(self, asked: httpx.QueryParams) -> httpx.Response:
        """The end of a log, as Ray's state API streams it."""
        log = self.logs.get(asked["submission_id"])
        if log is None or asked.get("node_id") != "node-1":
            return httpx.Response(500, text="Could not find a log file.")
        lines = log.splitlines(keepends=True)[-int(asked["lines"]) :]
        return httpx.Response(200, content=(line.encode() for line in lines))

    def _submit(self, body: dict[str, Any]) -> httpx.Response:
        submission_id = body["submission_id"]
        if self.refuses or self._job(submission_id) is not None:
            return httpx.Response(500, text="Traceback ...\nsomething in prose")
        self.options = {name: value for name, value in body.items() if name not in _OWN}
        self.jobs.append(FakeJob(submission_id, "PENDING", entrypoint=body["entrypoint"]))
        return httpx.Response(200, json={"submission_id": submission_id})

    def _answer_about(self, method: str, submission_id: str, action: str = "") -> httpx.Response:
        job = self._job(submission_id)
        if job is None:
            return httpx.Response(404, text=f"Job {submission_id} does not exist")
        if action == "stop":
            return self._stop(job)
        if method == "DELETE":
            return self._delete(job)
        return httpx.Response(200, json=asdict(job))

    def _stop(self, job: FakeJob) -> httpx.Response:
        """Stop a job; one that has ended keeps its state."""
        was_running = job.status not in ENDED
        if was_running:
            job.status = "STOPPED"
        return httpx.Response(200, json={"stopped": was_running})

    def _delete(self, job: FakeJob) -> httpx.Response:
        if job.status not in ENDED:
            return httpx.Response(500, text="not in a terminal state")
        self.jobs.remove(job)
        return httpx.Response(200, json={"deleted": True})

    def _job(self, submission_id: str) -> FakeJob | None:
        return next((job for job in self.jobs if job.submission_id == submission_id), None)
