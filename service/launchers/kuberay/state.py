"""What a RayJob's status says of its attempt, and how one is ended.

    ""  ──> Initializing ──> Running ──> Complete | Failed        ValidationFailed
     ^            │             │
     └ Suspended <── Suspending ┘         Kueue may take back what it let go

A RayJob that is to end is neither deleted nor suspended. Deleted, its name would be free, and a
control plane that comes late could start it again; suspended, it would be let go again by Kueue. It
gets a deadline that is over instead: KubeRay looks at the deadline before it submits anything, so what
is marked while it waits can never run.

One that waits also gets a queue that does not exist, and loses its workers. Kueue ignores a new queue
on a Workload that it has evicted before, but replaces a Workload that has other pods than its RayJob,
with the RayJob's queue. Were it admitted all the same, KubeRay would make its head alone before it fails.
"""

from collections.abc import Mapping
from typing import Any

from service.launchers.kuberay.resource import QUEUE_LABEL
from service.launchers.port import LaunchState, LaunchStatus

STOPPED_MARK = "cmcl/stopped"
NO_QUEUE = "cmcl-stopped"
_NOT_STARTED = ("", "Suspended")
_ENDED_BADLY = ("Failed", "ValidationFailed")
# Of the Ray job within. Its end is told before that of the RayJob, which goes on to tidy up.
_OF_THE_JOB = {
    "RUNNING": LaunchState.RUNNING,
    "SUCCEEDED": LaunchState.SUCCEEDED,
    "FAILED": LaunchState.FAILED,
    "STOPPED": LaunchState.STOPPED,
}


def launch_status(job: Mapping[str, Any]) -> LaunchStatus:
    """In the port's words."""
    status = job.get("status", {})
    deployment, of_the_job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if _was_stopped(job, deployment):
        return LaunchStatus(LaunchState.STOPPED, "stopped on request")
    if deployment in _ENDED_BADLY:
        return LaunchStatus(LaunchState.FAILED, _words(status))
    if deployment == "Suspending":
        # Its pods are being taken away, and may still work.
        return LaunchStatus(LaunchState.RUNNING, "Kueue takes it back")
    if deployment in _NOT_STARTED:
        return LaunchStatus(LaunchState.PENDING, _waiting(job))
    # Complete, and of what it ran nothing is known: that is no success.
    otherwise = LaunchState.FAILED if deployment == "Complete" else LaunchState.PENDING
    return LaunchStatus(_OF_THE_JOB.get(of_the_job, otherwise), _words(status))


def stopping(job: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that ends it; it applies to the RayJob as it was seen, or not at all."""
    metadata: dict[str, Any] = {
        "annotations": {STOPPED_MARK: "true"},
        "resourceVersion": job["metadata"]["resourceVersion"],
    }
    spec: dict[str, Any] = {"activeDeadlineSeconds": 1, "ttlSecondsAfterFinished": 0}
    is_queued = QUEUE_LABEL in job["metadata"].get("labels", {})
    if is_queued and job["spec"].get("suspend"):
        # Were it left in its queue, those behind it might wait for room that it no longer needs.
        metadata["labels"] = {QUEUE_LABEL: NO_QUEUE}
        spec["rayClusterSpec"] = {"workerGroupSpecs": []}
    return {"metadata": metadata, "spec": spec}


def _was_stopped(job: Mapping[str, Any], deployment: str) -> bool:
    if STOPPED_MARK not in job["metadata"].get("annotations", {}):
        return False
    waits = bool(job["spec"].get("suspend")) and deployment in _NOT_STARTED
    return waits or deployment in _ENDED_BADLY


def _waiting(job: Mapping[str, Any]) -> str:
    queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    return f"waits in the queue {queue}" if queue and job["spec"].get("suspend") else ""


def _words(status: Mapping[str, Any]) -> str:
    return ": ".join(text for name in ("reason", "message") if (text := status.get(name)))
