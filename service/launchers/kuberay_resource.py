"""The RayJob resource of an attempt: https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/rayjob-quick-start.html

KubeRay does not retry (`backoffLimit: 0`): the control plane decides what follows a loss, because it
can see whether there is a candidate.

The number of pods is fixed, and KubeRay submits the job only once all of them run. Kueue rejects a
RayJob whose cluster scales, and a cluster that grew beyond its admitted size would use other quotas. So
an elastic attempt waits for room for all its ranks; `min_ranks` applies when it loses some later.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmcl.contract.methods import Priority
from service.core.setting_values import PodTemplates, legal_value
from service.launchers.port import Submission

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
