"""Before `helm uninstall`: the control plane ends, then everything that KubeRay has to end."""

from collections.abc import Iterator

import pytest

from service.launchers.kuberay_teardown import main
from tests.fakes.kubernetes_api import (
    DEPLOYMENTS,
    PODS,
    RAYS,
    KubernetesApi,
    Refusal,
    kubernetes_api,
)

OPTIONS = ["--namespace=default", "--release=demo", "--deployment=demo-cmcl"]
RELEASE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    """An API server with two releases."""
    with kubernetes_api() as served:
        for release in ("demo", "other"):
            labels = {RELEASE: release}
            pod = f"{release}-service-pod"
            served.has(DEPLOYMENTS, f"{release}-cmcl", labels, ends=pod)
            served.has(PODS, pod, labels | {COMPONENT: "service"})
            for kind, component in (("rayservices", "serving"), ("rayclusters", "training")):
                name = f"{release}-{component}"
                served.has(f"{RAYS}/{kind}", name, labels, ends=f"{name}-head")
                served.has(PODS, f"{name}-head", labels | {COMPONENT: component})
        yield served


def _ends(api: KubernetesApi, seconds: float = 5) -> int:
    return main([*OPTIONS, f"--seconds={seconds}"], api.connect, lambda _: None)


def _names(api: KubernetesApi) -> set[str]:
    return {name for collection in api.others.values() for name in collection}


def test_nothing_of_the_release_that_runs_is_left_and_all_of_others(api: KubernetesApi) -> None:
    others = {name for name in _names(api) if name.startswith("other")}
    assert _ends(api) == 0
    assert _names(api) == others


def test_the_control_plane_has_ended_before_anything_of_ray_is_deleted(api: KubernetesApi) -> None:
    """Otherwise it would count its attempts as lost, and submit them again."""
    api.ends["demo-cmcl"] = []
    assert _ends(api, seconds=0) == 1
    deleted = [request for request in api.requests if request.startswith("DELETE")]
    assert deleted == [f"DELETE {DEPLOYMENTS}/demo-cmcl"]


def test_it_waits_for_pods_that_outlive_their_cluster(
    api: KubernetesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.ends["demo-serving"] = []
    looks = []

    def pause(_: float) -> None:
        looks.append(len(api.requests))
        api.others[PODS].pop("demo-serving-head", None)

    assert main([*OPTIONS, "--seconds=5"], api.connect, pause) == 0
    assert len(looks) == 1
    assert "waiting for pod/demo-serving-head" in capsys.readouterr().out


def test_without_kuberay_it_fails_and_says_what_is_left(
    api: KubernetesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.kuberay_runs = False
    assert _ends(api, seconds=0) == 1
    said = capsys.readouterr().err
    assert "rayservices.ray.io/demo-serving, rayclusters.ray.io/demo-training" in said
    assert "helm uninstall --no-hooks" in said


def test_a_second_try_and_a_cluster_without_kuberays_kinds_are_no_errors(
    api: KubernetesApi,
) -> None:
    assert _ends(api) == 0
    assert _ends(api) == 0
    for kind in ("rayservices", "rayclusters"):
        del api.others[f"{RAYS}/{kind}"]
    assert _ends(api) == 0


def test_a_missing_permission_is_reported(
    api: KubernetesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refusal = Refusal(403, "Forbidden", "cannot delete resource deployments")
    assert _ends(api) == 1
    assert "cannot delete resource deployments" in capsys.readouterr().err
