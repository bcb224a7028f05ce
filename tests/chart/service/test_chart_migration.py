"""The migration hook before install and upgrade, when no other object of the release exists."""

import pytest

from service.__main__ import main
from tests.chart.release import BUCKET, Object, Release, environment_of, render

POSTGRES = {"database": {"existingSecret": "x"}}

EXTRA = {
    "extraVolumes": [{"name": "authorities", "configMap": {"name": "ours"}}],
    "extraVolumeMounts": [{"name": "authorities", "mountPath": "/etc/ours"}],
}


def _job(release: Release) -> Object:
    return release.one("Job", "demo-cmcl-migration")


def _jobs(release: Release) -> list[str]:
    return [item["metadata"]["name"] for item in release.of_kind("Job")]


def test_helm_runs_it_before_it_changes_anything(gpu: Release) -> None:
    annotations = _job(gpu)["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
    # One that failed stays, for its log.
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    spec = _job(gpu)["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (240, 2)
    # The default timeout of Helm is five minutes: the deadline of the Job is earlier.
    assert spec["activeDeadlineSeconds"] < 300
    # Helm does not delete a failed hook when it uninstalls either.
    assert spec["ttlSecondsAfterFinished"] == 86400


def test_with_sqlite_the_pod_does_it(trial: Release) -> None:
    assert "demo-cmcl-migration" not in _jobs(trial)
    assert trial.container("service")["startupProbe"]["failureThreshold"] >= 60


def test_it_needs_nothing_of_the_release(production: Release) -> None:
    """No ConfigMap, claim or volume of the service: none exists before an install."""
    release = render(BUCKET | POSTGRES | {"service": EXTRA})
    assert "authorities" in [
        mount["name"] for mount in release.container("service")["volumeMounts"]
    ]
    assert "authorities" not in [
        mount["name"] for mount in release.container("migration")["volumeMounts"]
    ]
    pod = _job(production)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "envFrom" not in container
    assert all("emptyDir" in volume for volume in pod["volumes"])
    assert environment_of(container)["CMCL_DATABASE_URL"] == {
        "secretKeyRef": {"name": "cmcl-database", "key": "url"}
    }


def test_it_has_the_identity_of_the_service_before_that_has_an_account(
    production: Release, locked_down: Release
) -> None:
    account = _job(production)["spec"]["template"]["spec"]["serviceAccountName"]
    made = production.one("ServiceAccount", account)["metadata"]["annotations"]
    assert made["example.org/role"] == "cmcl-service"
    job = _job(production)["metadata"]["annotations"]
    for hook in ("helm.sh/hook", "helm.sh/hook-delete-policy"):
        assert made[hook] == job[hook]
    assert int(made["helm.sh/hook-weight"]) < 0
    # One that others make is there already.
    assert _job(locked_down)["spec"]["template"]["spec"]["serviceAccountName"] == "cmcl-service"


def test_volumes_that_exist_before_can_be_its_own() -> None:
    release = render(BUCKET | POSTGRES | {"service": {"migration": EXTRA}})
    assert "authorities" in [
        mount["name"] for mount in release.container("migration")["volumeMounts"]
    ]
    assert "authorities" not in [
        mount["name"] for mount in release.container("service")["volumeMounts"]
    ]


def test_it_runs_a_command_that_the_service_has(gpu: Release) -> None:
    container = gpu.container("migration")
    assert container["image"] == gpu.container("service")["image"]
    assert "command" not in container, "the image's own is `python -m service`"
    with pytest.raises(SystemExit) as end:
        main([*container["args"], "--help"])
    assert end.value.code == 0
