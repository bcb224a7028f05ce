"""The API server of a Kubernetes that has RayJobs, over HTTP, with what KubeRay and Kueue do to them.

Written after the API conventions (resourceVersion, Status objects, merge patches) and the sources of
the two controllers: KubeRay checks the deadline first; Kueue admits a suspended RayJob,
and permits another queue only while it waits. What Kueue queues is its own object, the Workload: it is
recreated where the RayJob has other pods, and takes another queue otherwise only if it was never evicted
(jobframework/reconciler.go, ensureOneWorkload and handleQueueNameChange).
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

from kubernetes.client import ApiClient, Configuration, CustomObjectsApi

RAYS = "/apis/ray.io/v1/namespaces/default"
RAYJOBS = f"{RAYS}/rayjobs"
PODS = "/api/v1/namespaces/default/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
_QUEUE = "kueue.x-k8s.io/queue-name"
_ENDED = ("Complete", "Failed")

RayJob = dict[str, Any]


class Refusal(Exception):
    """An answer other than 2xx."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


@dataclass
class Workload:
    """The Workload that Kueue queues."""

    queue: str
    pods: list[int]
    was_evicted: bool = False


class KubernetesApi:
    """RayJobs by name; the test sets the state of each."""

    def __init__(self) -> None:
        self.jobs: dict[str, RayJob] = {}
        # Workloads of Kueue by the RayJob's name, only for RayJobs with a queue.
        self.workloads: dict[str, Workload] = {}
        # Labels of other objects, by collection and name; `ends` says what goes with which.
        self.others: dict[str, dict[str, dict[str, str]]] = {}
        self.ends: dict[str, list[str]] = {}
        # Without its operator, what has a finalizer of KubeRay stays.
        self.kuberay_runs = True
        # Logs of containers, by pod and container; one that is missing has not started.
        self.logs: dict[tuple[str, str], str] = {}
        # Uids of ConfigMaps, by name.
        self.config_maps: dict[str, str] = {}
        self.requests: list[str] = []
        # The response to every request while it is set.
        self.refusal: Refusal | None = None
        # Number of patches that conflict with an earlier write of a controller.
        self.overtaken = 0
        self.address = ""

    def connect(self) -> CustomObjectsApi:
        """A client of the real library."""
        return CustomObjectsApi(ApiClient(Configuration(host=self.address)))

    def write_kubeconfig(self, home: Path) -> None:
        """Write a kubeconfig for this server."""
        folder = home / ".kube"
        folder.mkdir()
        context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [context],
            "clusters": [{"name": "here", "cluster": {"server": self.address}}],
            "users": [{"name": "me", "user": {}}],
        }
        # JSON is YAML.
        (folder / "config").write_text(json.dumps(config))

    def become(self, name: str, status: str, deployment: str, message: str = "") -> None:
        """Set the state of the Ray job, and KubeRay's own."""
        said = {"jobStatus": status, "jobDeploymentStatus": deployment, "message": message}
        self._write(self.jobs[name], status={key: text for key, text in said.items() if text})

    def admit(self, name: str) -> None:
        """Admit the RayJob, as Kueue does when it has quota."""
        self.jobs[name]["spec"]["suspend"] = False
        self.become(name, "", "Initializing")
        self._obey_deadline(self.jobs[name])

    def preempt(self, name: str) -> None:
        """Preempt the RayJob, as Kueue does: its pods are deleted."""
        self.jobs[name]["spec"]["suspend"] = True
        self.become(name, "", "Suspended")
        self.workloads[name].was_evicted = True

    def delete_config_map(self, name: str) -> None:
        """Delete it and everything that it owns, as the garbage collector does a moment later."""
        uid = self.config_maps.pop(name)
        self.jobs = {
            job: found
            for job, found in self.jobs.items()
            if uid not in [each["uid"] for each in found["metadata"].get("ownerReferences", [])]
        }

    def has(self, collection: str, name: str, labels: dict[str, str], ends: str = "") -> None:
        """An object that is neither RayJob nor ConfigMap; `ends` is another that goes with it."""
        self.others.setdefault(collection, {})[name] = labels
        if ends:
            self.ends.setdefault(name, []).append(ends)

    def answer(self, method: str, path: str, body: RayJob | None, selector: str = "") -> RayJob:
        """Return the server's response. Raises Refusal."""
        self.requests.append(f"{method} {path}")
        if self.refusal is not None:
            raise self.refusal
        if path in self.others or path.rpartition("/")[0] in self.others:
            return self._other(method, path, selector)
        if method == "GET" and path.startswith(CONFIG_MAPS):
            return self._config_map(path.removeprefix(f"{CONFIG_MAPS}/"))
        if not path.startswith(RAYJOBS):
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if path == RAYJOBS:
            return self._list(selector) if body is None else self._create(body)
        name = path.removeprefix(f"{RAYJOBS}/")
        if name not in self.jobs:
            raise Refusal(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        if method == "DELETE":
            return self.jobs.pop(name)
        return self._patch(self.jobs[name], body) if body is not None else self.jobs[name]

    def _list(self, selector: str) -> RayJob:
        jobs = [job for job in self.jobs.values() if _selects(selector, job["metadata"]["labels"])]
        return {"items": jobs, "metadata": {}}

    def log(self, path: str, query: dict[str, list[str]]) -> str:
        """Return the end of a container's log. Raises Refusal."""
        self.requests.append(f"GET {path}")
        pod = path.removeprefix(f"{PODS}/").removesuffix("/log")
        (container,) = query["container"]
        if (pod, container) not in self.logs:
            message = f'container "{container}" in pod "{pod}" is waiting to start'
            raise Refusal(400, "BadRequest", message)
        lines = self.logs[pod, container].splitlines(keepends=True)
        return "".join(lines[-int(query["tailLines"][0]) :])

    def _other(self, method: str, path: str, selector: str) -> dict[str, Any]:
        if path not in self.others:
            collection, _, name = path.rpartition("/")
            if name not in self.others[collection]:
                raise Refusal(404, "NotFound", f'"{name}" not found')
            self._remove(collection, name)
            return {"kind": "Status", "status": "Success"}
        found = [name for name, labels in self.others[path].items() if _selects(selector, labels)]
        if method == "DELETE":
            for name in found:
                if self.kuberay_runs or not path.startswith(RAYS):
                    self._remove(path, name)
            return {"kind": "Status", "status": "Success"}
        created = {"creationTimestamp": "2026-11-24T12:00:00Z"}
        return {"items": [{"metadata": {"name": name, **created}} for name in found]}

    def _remove(self, path: str, name: str) -> None:
        self.others[path].pop(name, None)
        for dependent in self.ends.get(name, []):
            for collection in self.others:
                if dependent in self.others[collection]:
                    self._remove(collection, dependent)

    def _config_map(self, name: str) -> dict[str, Any]:
        if name not in self.config_maps:
            raise Refusal(404, "NotFound", f'configmaps "{name}" not found')
        metadata = {"name": name, "uid": self.config_maps[name]}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}

    def _create(self, job: RayJob) -> RayJob:
        name = job["metadata"]["name"]
        if name in self.jobs:
            raise Refusal(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        self.jobs[name] = job
        self._write(job, status={"jobDeploymentStatus": "Suspended"} if _waits(job) else {})
        self._queue(job)
        return job

    def _patch(self, job: RayJob, change: RayJob) -> RayJob:
        if self.overtaken:
            self.overtaken -= 1
            self._write(job)
        metadata = change["metadata"]
        if metadata["resourceVersion"] != job["metadata"]["resourceVersion"]:
            raise Refusal(409, "Conflict", "the object has been modified")
        if _QUEUE in metadata.get("labels", {}) and not _waits(job):
            raise Refusal(403, "Forbidden", "queue-name: field is immutable")
        self._write(job, **_merged(job, change))
        self._queue(job)
        self._obey_deadline(job)
        return job

    def _queue(self, job: RayJob) -> None:
        """Act as Kueue does a moment later."""
        queue = job["metadata"].get("labels", {}).get(_QUEUE)
        if queue is None:
            return
        name, pods = job["metadata"]["name"], _pods(job)
        workload = self.workloads.get(name)
        if workload is None or workload.pods != pods:
            self.workloads[name] = Workload(queue, pods)
        elif not workload.was_evicted:
            workload.queue = queue

    def _obey_deadline(self, job: RayJob) -> None:
        """Act as KubeRay does a moment later; running jobs are older than a second."""
        has_ended = job["status"].get("jobDeploymentStatus") in _ENDED
        if job["spec"]["activeDeadlineSeconds"] == 1 and not (has_ended or _waits(job)):
            self._write(
                job,
                status={
                    **job["status"],
                    "jobDeploymentStatus": "Failed",
                    "reason": "DeadlineExceeded",
                },
            )

    def _write(self, job: RayJob, **changes: Any) -> None:
        job.update(changes)
        version = int(job["metadata"].get("resourceVersion", "0")) + 1
        job["metadata"]["resourceVersion"] = str(version)


@contextmanager
def kubernetes_api() -> Iterator[KubernetesApi]:
    """Serve on loopback until the block ends."""
    api = KubernetesApi()
    server = _Server(api)
    api.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _selects(selector: str, labels: dict[str, str]) -> bool:
    """Terms `name=value` and `name in (value,value)`."""
    for term in re.findall(r"[^,(]+(?:\([^)]*\))?", selector):
        name, values = re.split(r"=| in ", term, maxsplit=1)
        if labels.get(name) not in values.strip("()").split(","):
            return False
    return True


def _waits(job: RayJob) -> bool:
    return bool(job["spec"].get("suspend"))


def _pods(job: RayJob) -> list[int]:
    """Return the pods of each worker group."""
    return [group["replicas"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]


def _merged(old: RayJob, change: RayJob) -> RayJob:
    """JSON merge patch, as far as it is needed here: nothing is removed."""
    return {
        **old,
        **{
            key: _merged(old.get(key, {}), value) if isinstance(value, dict) else value
            for key, value in change.items()
        },
    }


class _Server(ThreadingHTTPServer):
    def __init__(self, api: KubernetesApi) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_DELETE(self) -> None:
        # With no body, or with options that nothing here depends on.
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self._answer(None)

    def do_PATCH(self) -> None:
        if self.headers["Content-Type"] != "application/merge-patch+json":
            self._send(415, {"kind": "Status", "message": "unsupported media type"})
            return
        self._answer(self._body())

    def _body(self) -> RayJob:
        body: RayJob = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return body

    def _answer(self, body: RayJob | None) -> None:
        api = cast("_Server", self.server).api
        path, _, query = self.path.partition("?")
        (selector,) = parse_qs(query).get("labelSelector", [""])
        try:
            if path.endswith("/log"):
                self._send_text(api.log(path, parse_qs(query)))
                return
            self._send(200, api.answer(self.command, path, body, selector))
        except Refusal as error:
            status = {"kind": "Status", "status": "Failure", "code": error.code}
            self._send(error.code, {**status, "reason": error.reason, "message": str(error)})

    def _send(self, code: int, answer: RayJob) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_text(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log nothing: tests read `requests`."""
