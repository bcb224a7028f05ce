"""The pre-delete hook ends KubeRay's objects while everything that KubeRay needs exists."""

from collections.abc import Iterator

import pytest

from service.launchers.kuberay_teardown import PLURALS, main
from tests.chart.release import Release, each_release
from tests.fakes.kubernetes_api import PODS, KubernetesApi, kubernetes_api

HOOK = "demo-cmcl-uninstall"


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with kubernetes_api() as served:
        yield served


def _options(release: Release) -> list[str]:
    command: list[str] = release.container("uninstall")["command"]
    assert command[:3] == ["python", "-m", "service.launchers.kuberay_teardown"]
    return command[3:]


@each_release()
def test_a_release_ends_its_ray_clusters_before_helm_ends_the_rest(release: Release) -> None:
    job = release.one("Job", HOOK)
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    # What it needs is made before it, and removed with it.
    for kind in ("ServiceAccount", "Role", "RoleBinding", "NetworkPolicy"):
        annotations = release.one(kind, HOOK)["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "pre-delete"
        assert int(annotations["helm.sh/hook-weight"]) < 0
        policy = job["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        assert annotations["helm.sh/hook-delete-policy"] == policy
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == HOOK


@each_release()
def test_it_finds_what_the_release_has(release: Release) -> None:
    """By the label of the Ray objects, which KubeRay copies to clusters and pods, and by name."""
    options = dict(option.removeprefix("--").split("=") for option in _options(release))
    release.one("Deployment", options["deployment"])
    assert options["namespace"] == "test"
    for item in release.of_kind("RayService", "RayCluster"):
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == options["release"]
        assert f"{item['kind'].lower()}s" in PLURALS


def test_its_permissions_are_exactly_those_it_uses(trial: Release, api: KubernetesApi) -> None:
    api.others[PODS] = {}
    options = [option.replace("=test", "=default") for option in _options(trial)]
    assert main(options, api.connect, lambda _: None) == 0
    used = {_rule(request) for request in api.requests}
    allowed = {
        (group, resource, verb, *rule.get("resourceNames", []))
        for rule in trial.one("Role", HOOK)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert used == allowed


def _rule(request: str) -> tuple[str, ...]:
    """The right that a request needs: group, resource, verb, and the name if it has one."""
    method, path = request.split(" ")
    *start, resource = path.partition("/namespaces/default/")[::2]
    _, kind, group, *_ = [*start[0].split("/"), ""]
    resource, _, name = resource.partition("/")
    verb = {"GET": "list", "DELETE": "delete" if name else "deletecollection"}[method]
    return ("" if kind == "api" else group, resource, verb, *([name] if name else []))


def test_it_reaches_kubernetes_where_egress_is_restricted(locked_down: Release) -> None:
    (rule,) = locked_down.one("NetworkPolicy", HOOK)["spec"]["egress"]
    assert [entry["port"] for entry in rule["ports"]] == [443, 6443]
