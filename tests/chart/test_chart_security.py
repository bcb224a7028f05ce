"""Pod Security Standard "restricted", for every pod that the chart makes or has made."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chart.release import Object, Release

# https://kubernetes.io/docs/concepts/security/pod-security-standards/
PERMITTED_VOLUMES = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected", "csi"}
HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")


def violations(spec: Object) -> list[str]:
    """What "restricted" forbids in a pod, in words; empty when it is admitted."""
    return [
        *_of_pod(spec),
        *(problem for part in _containers(spec) for problem in _of_container(part)),
    ]


def _containers(spec: Object) -> list[Object]:
    return [*spec["containers"], *spec.get("initContainers", [])]


def _of_pod(spec: Object) -> Iterator[str]:
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") in (0, None):
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


def test_every_pod_is_admitted_as_restricted(release: Release) -> None:
    templates = release.pod_templates()
    assert len(templates) in (5, 6), "encoders have pods of their own"
    assert [
        f"{where} {problem}"
        for where, template in templates.items()
        for problem in violations(template["spec"])
    ] == []


def _set(*path: str | int, value: Any) -> Callable[[Object], None]:
    def change(spec: Object) -> None:
        node: Any = spec
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_set("securityContext", value={}), "may run as root"),
        (_set("securityContext", "seccompProfile", value={}), "has no seccomp profile"),
        (_set("hostNetwork", value=True), "uses hostNetwork"),
        (_set("volumes", value=[{"name": "x", "hostPath": {}}]), "not permitted: x"),
        (_set("containers", 0, "securityContext", value={}), "may gain privileges"),
        (_set("containers", 0, "securityContext", "capabilities", value={}), "keeps capabilities"),
        (_set("initContainers", value=[{"name": "late"}]), "may gain privileges"),
    ],
)
def test_a_planted_violation_is_caught(
    trial: Release, change: Callable[[Object], None], problem: str
) -> None:
    spec = copy.deepcopy(trial.one("Deployment", "demo-cmcl")["spec"]["template"]["spec"])
    change(spec)
    assert any(problem in found for found in violations(spec))


def test_no_pod_holds_a_token_of_kubernetes(release: Release) -> None:
    for template in release.pod_templates().values():
        assert template["spec"]["automountServiceAccountToken"] is False
    for account in release.of_kind("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_no_image_floats(release: Release) -> None:
    for template in release.pod_templates().values():
        _, _, tag = template["spec"]["containers"][0]["image"].rpartition(":")
        assert tag not in ("", "latest")


def test_every_pod_asks_for_memory_and_has_a_limit(release: Release) -> None:
    for template in release.pod_templates().values():
        resources = template["spec"]["containers"][0]["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert "memory" in resources["limits"]
