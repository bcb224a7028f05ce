"""Ray's autoscaler in the head's pod, which scales pods of ranks from zero."""

from tests.chart.release import Object, Release, render

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def _cluster(release: Release) -> Object:
    spec: Object = release.one("RayCluster", "demo-cmcl-training")["spec"]
    return spec


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
