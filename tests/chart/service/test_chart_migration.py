"""The migration before install and upgrade: what Helm runs while nothing else of the release is there."""

import pytest

from service.__main__ import main
from tests.chart.release import Object, Release, environment_of, render


def _job(release: Release) -> Object:
    return release.one("Job", "demo-cmcl-migration")


def test_helm_runs_it_before_it_changes_anything(gpu: Release) -> None:
    annotations = _job(gpu)["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
    # One that failed stays, for its log.
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    spec = _job(gpu)["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (240, 2)
    # Helm gives up after five minutes unless told otherwise: the Job's own end comes first.
    assert spec["activeDeadlineSeconds"] < 300


def test_with_sqlite_the_pod_does_it(trial: Release) -> None:
    assert trial.of_kind("Job") == []
    assert trial.container("service")["startupProbe"]["failureThreshold"] >= 60


def test_it_can_be_left_to_the_pods() -> None:
    values = {"database": {"existingSecret": "x"}, "service": {"migration": {"enabled": False}}}
    assert render(values).of_kind("Job") == []


def test_it_needs_nothing_of_the_release(production: Release) -> None:
    """No account, no ConfigMap, no claim: before an install there is none."""
    pod = _job(production)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["serviceAccountName"] == "default"
    assert "envFrom" not in container
    assert all("emptyDir" in volume for volume in pod["volumes"])
    assert environment_of(container)["CMCL_DATABASE_URL"] == {
        "secretKeyRef": {"name": "cmcl-database", "key": "url"}
    }


def test_it_runs_a_command_that_the_service_has(gpu: Release) -> None:
    container = gpu.container("migration")
    assert container["image"] == gpu.container("service")["image"]
    assert "command" not in container, "the image's own is `python -m service`"
    with pytest.raises(SystemExit) as end:
        main([*container["args"], "--help"])
    assert end.value.code == 0
