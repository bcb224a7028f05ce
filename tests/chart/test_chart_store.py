"""Object storage: the same for the control plane and for every Ray node."""

import pytest

from tests.chart.release import Object, Release, environment_of, render

KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def _pods(release: Release) -> list[Object]:
    """Those that read or write the store: not the migration, nor the test."""
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
    assert len(_containers(production)) == 6
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


def test_bucket_and_postgres_need_no_volume(production: Release) -> None:
    assert production.of_kind("PersistentVolumeClaim") == []
    for spec in _pods(production):
        assert all("emptyDir" in volume for volume in spec["volumes"])
