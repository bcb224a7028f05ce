"""Ray's autoscaler in the head's pod, which scales pods of ranks from zero."""

import helm_python
import pytest

from tests.chart.release import BUCKET, Object, Release, render

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def _cluster(release: Release) -> Object:
    spec: Object = release.one("RayCluster", "demo-cmcl-training")["spec"]
    return spec


def test_ranks_come_from_none_when_an_attempt_wants_them(gpu: Release) -> None:
    spec = _cluster(gpu)
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 120
    ranks = gpu.groups()["ranks"]
    assert (ranks["replicas"], ranks["minReplicas"], ranks["maxReplicas"]) == (0, 0, 4)
    limits = ranks["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "4"


def test_without_it_they_are_there_from_the_start(production: Release) -> None:
    assert "enableInTreeAutoscaling" not in _cluster(production)
    ranks = production.groups()["ranks"]
    assert ranks["replicas"] == ranks["minReplicas"] == ranks["maxReplicas"] == 3


def test_at_most_it_makes_what_one_attempt_needs() -> None:
    training = {"ranks": 5, "ranksPerPod": 2, "autoscaling": {"enabled": True}}
    assert render(BUCKET | {"training": training}).groups()["ranks"]["maxReplicas"] == 3


@pytest.mark.parametrize(
    ("scaling", "complaint"),
    [
        ({"maxPods": 2}, r"maxPods is 2; the ranks of one attempt need 4"),
        ({"minPods": 5}, r"minPods is 5; it must be at most maxPods, which is 4"),
    ],
)
def test_bounds_that_fit_no_attempt_are_refused(scaling: dict[str, int], complaint: str) -> None:
    values = {"training": {"ranks": 4, "autoscaling": {"enabled": True, **scaling}}}
    with pytest.raises(helm_python.HelmRenderError, match=complaint):
        render(values)


def test_the_token_of_kubernetes_is_in_its_container_alone(gpu: Release) -> None:
    """Ray runs any code, and this token may change pods and the cluster."""
    spec = _cluster(gpu)
    pod = spec["headGroupSpec"]["template"]["spec"]
    (volume,) = [item for item in pod["volumes"] if item["name"] == "kubernetes-token"]
    paths = [
        source["serviceAccountToken"]["path"]
        for source in volume["projected"]["sources"]
        if "serviceAccountToken" in source
    ]
    assert paths == ["token"]
    mounts = {mount["name"]: mount for mount in spec["autoscalerOptions"]["volumeMounts"]}
    assert mounts["kubernetes-token"]["mountPath"] == TOKEN
    assert pod["automountServiceAccountToken"] is False
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert "kubernetes-token" not in [mount["name"] for mount in container["volumeMounts"]]


def test_ray_looks_for_the_token_where_it_is_mounted() -> None:
    from ray.autoscaler._private.kuberay import node_provider  # takes a second

    assert f"{TOKEN}/token" == node_provider.IN_CLUSTER_TOKEN_PATH
    assert f"{TOKEN}/ca.crt" == node_provider.IN_CLUSTER_CA_CERT_PATH


def test_its_container_may_write_where_it_needs_to(gpu: Release) -> None:
    spec = _cluster(gpu)
    volumes = {item["name"] for item in spec["headGroupSpec"]["template"]["spec"]["volumes"]}
    mounts = spec["autoscalerOptions"]["volumeMounts"]
    assert {mount["name"] for mount in mounts} <= volumes
    assert {"/tmp", "/home/cmcl"} <= {mount["mountPath"] for mount in mounts}


def test_rayjobs_do_not_scale(queued: Release) -> None:
    """Kueue refuses those that do."""
    values = {"training": {"launcher": "kuberay", "autoscaling": {"enabled": True}}}
    for release in (queued, render(values)):
        assert "kubernetes-token" not in str(release.one("ConfigMap", "demo-cmcl-pods"))
