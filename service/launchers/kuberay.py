"""Attempts as RayJobs of KubeRay.

https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/rayjob-quick-start.html

KubeRay does not retry (`backoffLimit: 0`): the control plane decides what follows a loss, because it
can see whether there is a candidate.

The number of pods is fixed, and KubeRay submits the job only once all of them run. Kueue rejects a
RayJob whose cluster scales, and a cluster that grew beyond its admitted size would use other quotas. So
an elastic attempt waits for room for all its ranks; `min_ranks` applies when it loses some later.

The client is created on first use, because it reads files that may appear later. It re-reads the token
of its service account while it runs.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, ApiException, Configuration, CoreV1Api, CustomObjectsApi
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
from urllib3.exceptions import HTTPError

from cmcl.contract.methods import Priority
from service.core.setting_values import PodTemplates, must_be_a_queue
from service.launchers.port import (
    LOG_LINES,
    LOG_SECONDS,
    LauncherRejected,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    end_of_log,
    shortened,
)

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
# The version in our pod image; the control plane has no Ray installed.
RAY_VERSION = "2.60.0"
# Time to read the logs of the pods of an attempt that ended.
_KEPT_SECONDS = 60
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
RELEASE_LABEL = "app.kubernetes.io/instance"
_MANAGED_BY = {"app.kubernetes.io/managed-by": "cmcl"}
# KubeRay appends six characters and rejects cluster names longer than 53.
_LONGEST_NAME = 47
_DIGEST_LENGTH = 8
_LARGEST_SECONDS = 2**31 - 1
# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/
_LABEL_LENGTH = 63
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")


RAY_CONTAINER = "ray"
# KubeRay's name of the container that runs `ray job submit` and prints the log of the driver.
SUBMITTER_CONTAINER = "ray-job-submitter"

Tree = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """What all RayJobs of an installation have in common.

    `deadline_seconds` ends an attempt even if the control plane is gone. `owner` is a ConfigMap; when
    it is deleted, Kubernetes deletes the RayJobs too.
    """

    image: str
    namespace: str = "default"
    release: str = ""
    owner: str = ""
    service_account: str = "default"
    priority_classes: Mapping[Priority, str] = field(default_factory=dict)
    pods: PodTemplates = field(default_factory=PodTemplates)
    ranks_per_pod: int = 1
    gpu_resource: str = "nvidia.com/gpu"
    submission_mode: str = "HTTPMode"
    deadline_seconds: float = 86400
    runtime_env: Mapping[str, Any] = field(default_factory=dict)


def resource_name(submission_id: str) -> str:
    """The id as a DNS label that KubeRay accepts; unique for each id."""
    name = re.sub(r"[^a-z0-9-]", "-", submission_id.lower()).strip("-")
    if name == submission_id and name[:1].isalpha() and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(submission_id.encode()).hexdigest()[:_DIGEST_LENGTH]
    kept = f"x-{name}"[: _LONGEST_NAME - _DIGEST_LENGTH - 1].rstrip("-")
    return f"{kept}-{digest}"


def ray_job(submission: Submission, site: Site, owner_uid: str = "") -> dict[str, Any]:
    """The resource to create; `owner_uid` is that of the site's owner, if it has one."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "RayJob",
        "metadata": {
            "name": resource_name(submission.id),
            "labels": _labels(submission, site),
            **_owned(site, owner_uid),
        },
        "spec": {
            "jobId": submission.id,
            "entrypoint": shlex.join(submission.command),
            "metadata": dict(submission.labels),
            # JSON is YAML.
            **({"runtimeEnvYAML": json.dumps(site.runtime_env)} if site.runtime_env else {}),
            "submissionMode": site.submission_mode,
            **_submitter(site),
            "backoffLimit": 0,
            "activeDeadlineSeconds": min(math.ceil(site.deadline_seconds), _LARGEST_SECONDS),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            # Kueue resumes it when there is room.
            "suspend": bool(submission.queue),
            "rayClusterSpec": _cluster(submission, site),
        },
    }


def owned_selector(site: Site) -> str:
    """Labels of the RayJobs of this release."""
    own = _MANAGED_BY | ({RELEASE_LABEL: site.release} if site.release else {})
    return ",".join(f"{name}={text}" for name, text in own.items())


def submitter_selector(job: Mapping[str, Any]) -> str | None:
    """Labels of the pod that submits the command; None in HTTPMode, where the operator does."""
    match job["spec"].get("submissionMode"):
        case "K8sJobMode":
            return f"job-name={job['metadata']['name']}"
        case "SidecarMode":
            cluster = job.get("status", {}).get("rayClusterName")
            return f"ray.io/cluster={cluster},ray.io/node-type=head" if cluster else None
        case _:
            return None


def _owned(site: Site, owner_uid: str) -> dict[str, Any]:
    if not owner_uid:
        return {}
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": site.owner, "uid": owner_uid}
    return {"ownerReferences": [owner]}


def _submitter(site: Site) -> dict[str, Any]:
    """HTTPMode has no such pod, and KubeRay refuses the field in SidecarMode."""
    if site.submission_mode == "K8sJobMode" and site.pods.submitter:
        return {"submitterPodTemplate": dict(site.pods.submitter)}
    return {}


def _labels(submission: Submission, site: Site) -> dict[str, str]:
    labels = {name: legal_value(text) for name, text in submission.labels.items()}
    if submission.queue:
        labels[QUEUE_LABEL] = submission.queue
        if priority_class := site.priority_classes.get(submission.priority):
            labels[_PRIORITY_LABEL] = priority_class
    if site.release:
        labels[RELEASE_LABEL] = site.release
    return labels | _MANAGED_BY


def legal_value(text: str) -> str:
    """The text as a valid label value. Owner names from tokens may contain other characters."""
    if len(text) <= _LABEL_LENGTH and _LABEL_VALUE.fullmatch(text):
        return text
    return re.sub(r"[^-A-Za-z0-9_.]", "_", text)[:_LABEL_LENGTH].strip("-_.")


def _cluster(submission: Submission, site: Site) -> dict[str, Any]:
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # The driver needs no CPU; ranks do, so they stay off the head.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - a pod
            "template": pod_template(site.image, site.service_account, {}, site.pods.head),
        },
        "workerGroupSpecs": [_workers(submission, site)] if submission.ranks else [],
    }


def _workers(submission: Submission, site: Site) -> dict[str, Any]:
    pods = math.ceil(submission.ranks / site.ranks_per_pod)
    gpus = math.ceil(submission.gpus_per_rank * site.ranks_per_pod)
    limits = {site.gpu_resource: gpus} if gpus else {}
    return {
        "groupName": "ranks",
        "replicas": pods,
        "minReplicas": pods,
        "maxReplicas": pods,
        "rayStartParams": {
            "num-cpus": str(site.ranks_per_pod),
            # KubeRay and Ray recognize only some GPU resource names, not nvidia.com/gpu.shared.
            **({"num-gpus": str(gpus)} if gpus else {}),
            **({"memory": str(submission.memory_per_pod)} if submission.memory_per_pod else {}),
        },
        "template": pod_template(site.image, site.service_account, limits, site.pods.workers),
    }


def pod_template(image: str, service_account: str, limits: Tree, site: Mapping[str, Any]) -> Tree:
    """A pod template of the RayJob; `limits` are the resources of its ranks."""
    container: Tree = {"name": RAY_CONTAINER, "image": image}
    if limits:
        container["resources"] = {"limits": limits}
    spec = {"serviceAccountName": service_account, "containers": [container]}
    merged: Tree = _merged({"spec": spec}, site)
    return merged


def _merged(ours: Any, site: Any) -> Any:
    if isinstance(ours, Mapping) and isinstance(site, Mapping):
        changed = {key: _merged(ours[key], site[key]) for key in ours if key in site}
        return {**ours, **site, **changed}
    if isinstance(ours, list) and isinstance(site, list) and _have_names([*ours, *site]):
        named = _merged(_by_name(ours), _by_name(site))
        return list(named.values())
    return site


def _have_names(entries: list[Any]) -> bool:
    return all(isinstance(entry, Mapping) and "name" in entry for entry in entries)


def _by_name(entries: list[Any]) -> Tree:
    return {entry["name"]: entry for entry in entries}


# Seconds to connect, and for a call.
_TIMES = (5, 30)
_BAD_REQUEST, _NOT_FOUND, _CONFLICT = 400, 404, 409
# The server rejects the request: wrong fields, no permission, unknown kind, a quota.
_REFUSALS = (400, 403, _NOT_FOUND, 422)
# KubeRay and Kueue write to the same object concurrently, so stopping may need retries.
_LOOKS = 3
# RayJobs of one answer. Each has several kilobytes.
_PAGE = 250
_MERGE = "application/merge-patch+json"
# Kubernetes mounts it into every pod with a service account.
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


STOPPED_MARK = "cmcl/stopped"

NO_QUEUE = "cmcl-stopped"

_NOT_STARTED = ("", "Suspended")

_ENDED_BADLY = ("Failed", "ValidationFailed")

# Status of the inner Ray job. It ends before the RayJob, which still cleans up.
_OF_THE_JOB = {
    "RUNNING": LaunchState.RUNNING,
    "SUCCEEDED": LaunchState.SUCCEEDED,
    "FAILED": LaunchState.FAILED,
    "STOPPED": LaunchState.STOPPED,
}


def connected() -> Any:
    """The API of the cluster that this runs in, or else of the current kubeconfig."""
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return CustomObjectsApi(ApiClient(configuration))


def own_namespace(file: Path = _NAMESPACE) -> str:
    """The namespace of this pod, in which its RayJobs are; outside of a cluster, `default`."""
    return file.read_text().strip() if file.exists() else "default"


class KubeRayLauncher:
    """Launcher over the RayJobs of one namespace."""

    def __init__(self, site: Site, connect: Callable[[], Any] = connected) -> None:
        self._site = site
        self._connect = connect
        self._api: Any = None

    def submit(self, submission: Submission) -> None:
        _check_queue(submission)
        with self._translated():
            job = ray_job(submission, self._site, self._owner_uid())
            try:
                self._call("create", body=job)
            except ApiException as error:
                if error.status in _REFUSALS:
                    message = f"Kubernetes refused {submission.id}: {_error_message(error)}"
                    raise LauncherRejected(message) from error
                # An existing name is this attempt, submitted before.
                if error.status != _CONFLICT:
                    raise

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        with self._translated():
            known = {job["metadata"]["name"]: job for job in self._listed()}
        found = {name: known.get(resource_name(name)) for name in submission_ids}
        return {name: _port_status(job) for name, job in found.items()}

    def stop(self, submission_id: str) -> None:
        with self._translated():
            for _ in range(_LOOKS):
                job = self._find(submission_id)
                if job is None or launch_status(job).has_ended or self._end(job):
                    return
        raise LauncherUnavailable(f"{submission_id} changed at each of {_LOOKS} tries to stop it")

    def log(self, submission_id: str) -> str:
        """See the port. Only submitters print it where Kubernetes keeps it: in HTTPMode there is none."""
        with self._translated():
            job = self._find(submission_id)
            selector = None if job is None else submitter_selector(job)
            return "" if selector is None else self._submitter_log(selector)

    def resources(self) -> None:
        """See the port. What Kubernetes has is no measure: it may add nodes, and other users take some."""

    def forget(self, submission_id: str) -> None:
        with self._translated():
            job = self._find(submission_id)
            if job is not None and launch_status(job).has_ended:
                self._remove(job)

    def _submitter_log(self, selector: str) -> str:
        """The end of the log of the newest pod with a submitter."""
        core, site = CoreV1Api(self._client().api_client), self._site
        times: Any = {"_request_timeout": (LOG_SECONDS, LOG_SECONDS)}
        found: Any = core.list_namespaced_pod(site.namespace, label_selector=selector, **times)
        if not found.items:
            return ""
        newest = max(found.items, key=lambda pod: pod.metadata.creation_timestamp)
        try:
            answer: Any = core.read_namespaced_pod_log(
                newest.metadata.name,
                site.namespace,
                container=SUBMITTER_CONTAINER,
                tail_lines=LOG_LINES,
                _preload_content=False,
                **times,
            )
        except ApiException as error:
            # 400: the container has not started yet.
            if error.status not in (_BAD_REQUEST, _NOT_FOUND):
                raise
            return ""
        try:
            return end_of_log(answer.stream())
        finally:
            answer.release_conn()

    def _owner_uid(self) -> str:
        """Read each time: a recreated owner has a new uid, and Kubernetes deletes dependents of the old."""
        if not self._site.owner:
            return ""
        found: Any = CoreV1Api(self._client().api_client).read_namespaced_config_map(
            self._site.owner, self._site.namespace, _request_timeout=_TIMES
        )
        uid: str = found.metadata.uid
        return uid

    def _listed(self) -> Iterator[Mapping[str, Any]]:
        """All RayJobs of this release, in pages."""
        page: dict[str, Any] = {}
        selector = owned_selector(self._site)
        while not page or page["metadata"].get("continue"):
            options = {"_continue": page["metadata"]["continue"]} if page else {}
            page = self._call("list", label_selector=selector, limit=_PAGE, **options)
            yield from page["items"]

    def _find(self, submission_id: str) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = self._call("get", name=resource_name(submission_id))
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise
            return None
        return found

    def _end(self, job: Mapping[str, Any]) -> bool:
        """Request its end. Returns False if it was changed concurrently."""
        name = job["metadata"]["name"]
        try:
            self._call("patch", name=name, body=stopping(job), _content_type=_MERGE)
        except ApiException as error:
            if error.status not in (_NOT_FOUND, _CONFLICT):
                raise
            return False
        return True

    def _remove(self, job: Mapping[str, Any]) -> None:
        try:
            self._call("delete", name=job["metadata"]["name"])
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise

    def _client(self) -> Any:
        if self._api is None:
            self._api = self._connect()
        return self._api

    def _call(self, verb: str, **arguments: Any) -> Any:
        method = getattr(self._client(), f"{verb}_namespaced_custom_object")
        return method(
            group=GROUP,
            version=VERSION,
            namespace=self._site.namespace,
            plural=PLURAL,
            _request_timeout=_TIMES,
            **arguments,
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ApiException as error:
            raise LauncherUnavailable(f"Kubernetes: {_error_message(error)}") from error
        except (HTTPError, ConfigException, OSError) as error:
            raise LauncherUnavailable(f"Kubernetes: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The innermost cause, such as "connection refused": urllib3 wraps it in three errors with addresses and paths."""
    inner = getattr(error, "reason", None) or error.__cause__
    if isinstance(inner, BaseException):
        return _cause(inner)
    system = error.strerror if isinstance(error, OSError) else None
    return system.lower() if system else str(error)


def _check_queue(submission: Submission) -> None:
    """Raises LauncherRejected for the queue of an owner whose name Kubernetes does not permit."""
    if submission.queue:
        try:
            must_be_a_queue(submission.queue)
        except ValueError as error:
            message = f"{error}. Set the field queue of the owner in CMCL_OWNERS"
            raise LauncherRejected(message) from error


def _error_message(error: ApiException) -> str:
    """The message of the API server, or else the HTTP status."""
    try:
        message: str = json.loads(error.body or "")["message"]
    except (TypeError, ValueError, KeyError):
        # The response came from a proxy.
        return f"{error.status} {error.reason}"
    return message


def _port_status(job: Mapping[str, Any] | None) -> LaunchStatus:
    if job is None:
        return LaunchStatus(LaunchState.UNKNOWN, "Kubernetes does not know this RayJob")
    found = launch_status(job)
    return LaunchStatus(found.state, shortened(found.message))


def launch_status(job: Mapping[str, Any]) -> LaunchStatus:
    status = job.get("status", {})
    deployment, of_the_job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if _was_stopped(job, deployment):
        return LaunchStatus(LaunchState.STOPPED, "stopped on request")
    if deployment in _ENDED_BADLY:
        return LaunchStatus(LaunchState.FAILED, _status_message(status))
    queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    if queue and job["spec"].get("suspend") and deployment != "Complete":
        # Kueue has not admitted it, or takes it back; then its Ray job may end with its pods.
        return LaunchStatus(LaunchState.QUEUED, f"waiting in queue {queue}")
    if deployment in _NOT_STARTED:
        return LaunchStatus(LaunchState.PENDING)
    # Complete without a job status is not a success.
    otherwise = LaunchState.FAILED if deployment == "Complete" else LaunchState.PENDING
    return LaunchStatus(_OF_THE_JOB.get(of_the_job, otherwise), _status_message(status))


def stopping(job: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that ends it; it applies only if the RayJob is unchanged."""
    metadata: dict[str, Any] = {
        "annotations": {STOPPED_MARK: "true"},
        "resourceVersion": job["metadata"]["resourceVersion"],
    }
    spec: dict[str, Any] = {"activeDeadlineSeconds": 1, "ttlSecondsAfterFinished": 0}
    is_queued = QUEUE_LABEL in job["metadata"].get("labels", {})
    if is_queued and job["spec"].get("suspend"):
        # Remove it from its queue, so that those behind it do not wait for its quota.
        metadata["labels"] = {QUEUE_LABEL: NO_QUEUE}
        spec["rayClusterSpec"] = {"workerGroupSpecs": []}
    return {"metadata": metadata, "spec": spec}


def _was_stopped(job: Mapping[str, Any], deployment: str) -> bool:
    if STOPPED_MARK not in job["metadata"].get("annotations", {}):
        return False
    waits = bool(job["spec"].get("suspend")) and deployment in _NOT_STARTED
    return waits or deployment in _ENDED_BADLY


def _status_message(status: Mapping[str, Any]) -> str:
    return ": ".join(text for name in ("reason", "message") if (text := status.get(name)))
