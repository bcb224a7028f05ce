"""Object storage: the same for the control plane and for every Ray node."""

import re

import helm_python
import pytest

from tests.chart.release import BUCKET, Object, Release, each_release, environment_of, render

ENCODER = {"name": "words", "kind": "synthetic", "takes": "text", "width": 8}
KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def _pods(release: Release) -> list[Object]:
    """Pods that use the store: all but the migration and the test."""
    return [
        template["spec"]
        for where, template in release.pod_templates().items()
        if where.startswith(("Deployment", "Ray"))
    ]


def _containers(release: Release) -> list[Object]:
    return [spec["containers"][0] for spec in _pods(release)]


def _aws(container: Object) -> Object:
    environment = environment_of(container)
    return {name: value for name, value in environment.items() if name.startswith("AWS_")}


def test_every_pod_reaches_the_same_bucket(production: Release) -> None:
    expected = {
        "AWS_ENDPOINT_URL": "https://objects.example.org",
        "AWS_DEFAULT_REGION": "eu-central-1",
        **{key: {"secretKeyRef": {"name": "cmcl-objects", "key": key}} for key in KEYS},
    }
    assert len(_containers(production)) == 7
    for container in _containers(production):
        assert _aws(container) == expected


def test_workload_identity_needs_no_keys() -> None:
    release = render({"store": {"uri": "s3://bucket/prefix"}})
    for container in _containers(release):
        assert _aws(container) == {}


@pytest.mark.parametrize("folder", ["/var/lib/cmcl/store", "/data"])
def test_every_pod_mounts_the_folder_of_the_uri(folder: str) -> None:
    release = render({"store": {"uri": f"file://{folder}"}})
    for spec in _pods(release):
        mounts = {
            mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]
        }
        claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in spec["volumes"]}
        assert mounts["store"] == folder
        assert claims["store"] == {"claimName": "demo-cmcl-store"}


def test_claims_outlive_the_release(trial: Release) -> None:
    claims = trial.of_kind("PersistentVolumeClaim")
    assert {claim["metadata"]["name"] for claim in claims} == {
        "demo-cmcl-store",
        "demo-cmcl-database",
    }
    for claim in claims:
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_a_claim_that_exists_is_used_and_not_made() -> None:
    volume = {"volume": {"existingClaim": "ours"}}
    release = render({"store": volume, "database": volume})
    assert release.of_kind("PersistentVolumeClaim") == []
    spec = release.one("Deployment", "demo-cmcl")["spec"]["template"]["spec"]
    claims = [item["persistentVolumeClaim"] for item in spec["volumes"] if "emptyDir" not in item]
    assert claims == [{"claimName": "ours"}, {"claimName": "ours"}]


ONE_NODE = "accessMode ReadWriteOnce, which only pods of one node can mount, and "
SHARED = {"store": {"volume": {"accessMode": "ReadWriteMany"}}}


@pytest.mark.parametrize(
    ("values", "who", "pods"),
    [
        ({"serving": {"replicas": 3}}, "serving.replicas and replicasPerPod", 3),
        ({"encoders": [ENCODER | {"replicas": 2}]}, "encoders", 2),
        ({"training": {"ranks": 5, "ranksPerPod": 2}}, "training.ranks, ranksPerPod and auto", 3),
        ({"training": {"autoscaling": {"enabled": True, "maxPods": 4}}}, "training.ranks", 4),
        (
            {"training": {"launcher": "kuberay", "ranks": 2}},
            "training.ranks, ranksPerPod and autoscaling",
            2,
        ),
        ({"database": {"existingSecret": "x"}}, "service.replicas or autoscaling", 2),
    ],
)
def test_pods_on_several_nodes_do_not_share_a_volume_of_one(
    values: Object, who: str, pods: int
) -> None:
    words = rf"{ONE_NODE}{re.escape(who)}.* ask for {pods} pods: set store\.uri to s3"
    with pytest.raises(helm_python.HelmRenderError, match=words):
        render(values)
    claim = render(values | SHARED).one("PersistentVolumeClaim", "demo-cmcl-store")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert render(values | BUCKET).of_kind("RayService")


@each_release()
def test_what_pods_write_is_on_a_disk(release: Release) -> None:
    """Uploads, shards and rows of ranks go to /tmp: a tmpfs would exceed the pod's memory."""
    for template in release.pod_templates().values():
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert "medium" not in volumes["tmp"]["emptyDir"]
        assert {"name": "tmp", "mountPath": "/tmp"} in template["spec"]["containers"][0][
            "volumeMounts"
        ]
