"""Pod Security Standard "restricted", for every pod of the chart and of KubeRay."""

from typing import Any

import helm_python

from tests.chart.release import EXAMPLES, Release, each_release, merged, render, values_of
from tests.chart.restricted import injected, violations

COMPONENT = "app.kubernetes.io/component"


@each_release()
def test_every_pod_is_admitted_as_restricted(release: Release) -> None:
    templates = release.pod_templates()
    assert {template["metadata"]["labels"][COMPONENT] for template in templates.values()} >= {
        *("service", "serving", "test")
    }
    assert [
        f"{where} {problem}"
        for where, template in templates.items()
        for problem in violations(template["spec"])
    ] == []


@each_release()
def test_pods_with_containers_of_kuberay_are_restricted(release: Release) -> None:
    pods = dict(injected(release))
    assert any("initContainers" in pod for pod in pods.values())
    assert [f"{where} {bad}" for where, pod in pods.items() for bad in violations(pod)] == []


@each_release()
def test_only_openshift_chooses_the_user(release: Release, openshift: Release) -> None:
    for template in release.pod_templates().values():
        context = template["spec"]["securityContext"]
        expected = set() if release is openshift else {"runAsUser", "runAsGroup", "fsGroup"}
        assert {"runAsUser", "runAsGroup", "fsGroup"} & context.keys() == expected
        variables = {entry["name"] for entry in template["spec"]["containers"][0]["env"]}
        assert {"HOME", "USER"} <= variables, "such a user is not in /etc/passwd"


@each_release()
def test_no_pod_holds_a_token_of_kubernetes(release: Release) -> None:
    uses_kubernetes = release.settings()["CMCL_LAUNCHER"] == "kuberay"
    for template in release.pod_templates(at_the_end=False).values():
        makes_rayjobs = uses_kubernetes and template["metadata"]["labels"][COMPONENT] == "service"
        assert template["spec"]["automountServiceAccountToken"] is makes_rayjobs
    for account in release.of_kind("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@each_release()
def test_no_image_floats(release: Release) -> None:
    for template in release.pod_templates().values():
        image = template["spec"]["containers"][0]["image"]
        _, _, tag = image.rpartition(":")
        assert "@sha256:" in image or tag not in ("", "latest")


@each_release()
def test_every_pod_requests_memory_and_has_a_limit(release: Release) -> None:
    for template in release.pod_templates().values():
        resources = template["spec"]["containers"][0]["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert "memory" in resources["limits"]


def _merge(node: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return node | {
        key: _merge(node.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in other.items()
    }


def test_every_pod_can_have_a_limit_of_cpus() -> None:
    """As a ResourceQuota on limits.cpu demands, also of hooks: otherwise neither install nor uninstall works."""
    limited = {"limits": {"cpu": "3"}}

    def with_limits(node: dict[str, Any]) -> dict[str, Any]:
        return {
            key: limited if key in ("resources", "helperResources") else with_limits(value)
            for key, value in node.items()
            if isinstance(value, dict)
        }

    limits = with_limits(merged({}))
    for example in EXAMPLES:
        values = _merge(values_of(example), limits)
        if values.get("training", {}).get("launcher") == "kuberay":
            values["training"].setdefault("rayJobs", {})["submissionMode"] = "K8sJobMode"
        release = render(values)
        templates = release.pod_templates()
        for pods in release.of_kind("ConfigMap"):
            for text in (pods["data"][name] for name in pods["data"] if name == "pods.yaml"):
                templates |= helm_python.values_from_yaml(text)
        unlimited = [
            where
            for where, template in templates.items()
            if template["spec"]["containers"][0]["resources"]["limits"].get("cpu") != "3"
        ]
        assert unlimited == [], example
