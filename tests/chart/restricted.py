"""Pod Security Standard "restricted", and what KubeRay adds to the pods that the chart describes.

The containers are those of KubeRay 1.6 (ray-operator/controllers/ray/common/pod.go and job.go): the init
container of workers has a copy of the Ray container's security context, the autoscaler that of
`autoscalerOptions`, the submitter that of the RayJob's template or none.
"""

from collections.abc import Iterator

from tests.chart.release import Object, Release

# https://kubernetes.io/docs/concepts/security/pod-security-standards/
PERMITTED_VOLUMES = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected", "csi"}
HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")


def violations(spec: Object) -> list[str]:
    """Violations of "restricted" in a pod, as messages; empty if it is admitted."""
    return [
        *_of_pod(spec),
        *(problem for part in _containers(spec) for problem in _of_container(part)),
    ]


def _containers(spec: Object) -> list[Object]:
    return [*spec["containers"], *spec.get("initContainers", [])]


def _of_pod(spec: Object) -> Iterator[str]:
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0:
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    yield from (f"uses {field}" for field in HOST_FIELDS if spec.get(field))
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= PERMITTED_VOLUMES:
            yield f"has a volume that is not permitted: {volume['name']}"


def _of_container(container: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "may gain privileges"
    if context.get("capabilities", {}) != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write to its image"
    if context.get("runAsNonRoot", True) is not True or context.get("runAsUser", 1) == 0:
        yield "may run as root"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "uses a port of the host"


def injected(release: Release) -> Iterator[tuple[str, Object]]:
    """Every pod of the release's Ray clusters with the containers that KubeRay adds."""
    for item in release.of_kind("RayCluster", "RayService"):
        spec = item["spec"].get("rayClusterConfig", item["spec"])
        yield f"{item['kind']} head", with_autoscaler(spec)
        for group in spec["workerGroupSpecs"]:
            yield f"{item['kind']} {group['groupName']}", with_wait(group["template"]["spec"])


def with_wait(spec: Object) -> Object:
    """A worker's pod, which waits for the head first."""
    ray = spec["containers"][0]
    little = {"cpu": "200m", "memory": "256Mi"}
    waits = {
        "name": "wait-gcs-ready",
        "volumeMounts": ray["volumeMounts"],
        "resources": {"requests": little, "limits": little},
    }
    if "securityContext" in ray:
        waits["securityContext"] = ray["securityContext"]
    return {**spec, "initContainers": [*spec.get("initContainers", []), waits]}


def with_autoscaler(cluster: Object) -> Object:
    """The head's pod, with the autoscaler where the cluster has one."""
    spec: Object = cluster["headGroupSpec"]["template"]["spec"]
    if not cluster.get("enableInTreeAutoscaling"):
        return spec
    options = cluster["autoscalerOptions"]
    taken = ("securityContext", "volumeMounts", "env", "resources")
    sidecar = {"name": "autoscaler", **{key: options[key] for key in taken if key in options}}
    return {**spec, "containers": [*spec["containers"], sidecar]}
