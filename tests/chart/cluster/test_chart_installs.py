"""The chart on a real API server: installed, upgraded, rolled back, uninstalled.

`CMCL_TEST_KUBECONFIG=FILE pytest -m cluster`. KubeRay's CRDs must be installed, or be in shared/crds; no
controller is needed, because the tests check only what Kubernetes accepts and stores.
"""

import json
import lzma
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart.cluster.tools import Cluster, NoTool, as_pod, find
from tests.chart.release import CHART, Object, Release, path_of
from tests.chart.restricted import injected
from tests.chart.schemas import CRDS

RELEASE = "demo"
# Pods of Jobs need not run here.
NO_HOOKS = "--no-hooks"
TRIAL = path_of("trial")
KUBECONFIG = os.environ.get("CMCL_TEST_KUBECONFIG", "")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not KUBECONFIG, reason="CMCL_TEST_KUBECONFIG names no cluster"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A namespace that enforces "restricted"; it is deleted at the end."""
    try:
        find("helm"), find("kubectl")
    except NoTool as error:
        pytest.skip(str(error))
    cluster = Cluster(Path(KUBECONFIG), f"cmcl-test-{secrets.token_hex(4)}")
    _make_crds(cluster)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": cluster.namespace, "labels": labels}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(namespace))
    try:
        yield cluster
    finally:
        cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false")


def _make_crds(cluster: Cluster) -> None:
    known = cluster.names("customresourcedefinitions")
    for name in ("rayclusters", "rayservices", "rayjobs"):
        if f"{name}.ray.io" not in known:
            if not CRDS.is_dir():
                pytest.skip("neither the cluster nor shared/crds has KubeRay's CRDs")
            with lzma.open(CRDS / f"{name}.yaml.xz", "rt") as file:
                # Too large for the annotation that a client-side apply writes.
                cluster.kubectl("create", "-f", "-", stdin=file.read())


def _settings(cluster: Cluster) -> dict[str, str]:
    data: dict[str, str] = cluster.get("configmap", "demo-cmcl")["data"]
    return data


def test_a_release_lives_its_whole_life(cluster: Cluster) -> None:
    values = ["--values", str(TRIAL)]
    cluster.helm("install", RELEASE, str(CHART), *values)
    assert "demo-cmcl-training" in cluster.names("rayclusters.ray.io")
    assert "demo-cmcl-serving" in cluster.names("rayservices.ray.io")
    assert _settings(cluster)["CMCL_MAX_ATTEMPTS"] == "3"

    cluster.helm("upgrade", RELEASE, str(CHART), *values, "--set", "service.maxAttempts=7")
    assert _settings(cluster)["CMCL_MAX_ATTEMPTS"] == "7"
    upgraded = _checksum(cluster)

    cluster.helm("rollback", RELEASE, "1")
    assert _settings(cluster)["CMCL_MAX_ATTEMPTS"] == "3"
    assert _checksum(cluster) != upgraded, "the pods would not notice"

    cluster.helm("uninstall", RELEASE, NO_HOOKS)
    for kind in ("deployments", "rayclusters.ray.io", "rayservices.ray.io", "networkpolicies"):
        assert not {name for name in cluster.names(kind) if name.startswith("demo-cmcl")}, kind
    claims = cluster.names("persistentvolumeclaims")
    assert claims == {"demo-cmcl-database", "demo-cmcl-store"}, "versions outlive the release"


def test_an_autoscaler_that_is_turned_on_keeps_the_replicas_that_run(cluster: Cluster) -> None:
    """Helm then releases the field, which Kubernetes would reset to 1."""
    values = "database.existingSecret=x,store.uri=s3://bucket/store,service.replicas=3"
    release = ("scaled", str(CHART), NO_HOOKS, "--set")
    cluster.helm("install", *release, values)
    cluster.helm("upgrade", *release, f"{values},service.autoscaling.enabled=true")
    assert cluster.get("deployment", "scaled-cmcl")["spec"]["replicas"] == 3
    cluster.helm("uninstall", "scaled", NO_HOOKS)


def _checksum(cluster: Cluster) -> str:
    spec = cluster.get("deployment", "demo-cmcl")["spec"]
    checksum: str = spec["template"]["metadata"]["annotations"]["checksum/settings"]
    return checksum


def test_every_set_is_taken_by_the_server(cluster: Cluster) -> None:
    """Sets with third-party objects need CRDs that a plain server lacks."""
    for example in ("gpu", "one-cluster", "openshift", "queued", "trial"):
        values = ["--values", str(path_of(example))]
        cluster.helm("install", f"{RELEASE}-{example}", str(CHART), *values, "--dry-run=server")


def test_the_namespace_admits_every_pod(cluster: Cluster, trial: Release, gpu: Release) -> None:
    """Pod Security's own admission, beside our copy of its rules."""
    cluster.helm("install", "admission", str(CHART), "--values", str(TRIAL))
    pods = {where: template["spec"] for where, template in trial.pod_templates().items()}
    pods |= dict(injected(gpu))
    for number, (where, spec) in enumerate(pods.items()):
        pod = as_pod(f"pod-{number}", {"metadata": {}, "spec": _with_an_account(spec)})
        answer = cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=pod)
        assert "created" in answer, where
    cluster.helm("uninstall", "admission", NO_HOOKS)


def _with_an_account(spec: Object) -> Object:
    """Use the namespace's account for any name of the release's, and add images for what KubeRay adds."""
    image = spec["containers"][0]["image"]
    complete = {**spec, "serviceAccountName": "default"}
    for kind in ("containers", "initContainers"):
        if kind in complete:
            complete[kind] = [{"image": image, **container} for container in complete[kind]]
    return complete
