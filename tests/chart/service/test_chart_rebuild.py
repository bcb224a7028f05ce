"""`admin rebuild` in a pod: a check on a schedule, and a lost database rebuilt on demand."""

from pathlib import Path
from typing import Any

import helm_python
import pytest

from service.__main__ import main
from tests.chart.release import Object, Release, environment_of, render, values_of
from tests.fakes.control_plane import ControlPlane


def _values(example: str, **rebuild: Any) -> Object:
    return values_of(example) | {"rebuild": {"enabled": True, **rebuild}}


def _cronjob(release: Release) -> Object:
    spec: Object = release.one("CronJob", "demo-cmcl-rebuild")["spec"]
    return spec


def _pod(release: Release) -> Object:
    spec: Object = _cronjob(release)["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def test_on_a_schedule_it_reads_and_touches_no_database(production: Release) -> None:
    cronjob, pod = _cronjob(production), _pod(production)
    assert (cronjob["schedule"], cronjob["suspend"]) == ("30 3 * * 0", False)
    assert cronjob["concurrencyPolicy"] == "Forbid"
    (container,) = pod["containers"]
    assert container["args"] == ["admin", "rebuild", "--verify=full", "--dry-run"]
    assert "CMCL_DATABASE_URL" not in environment_of(container)
    assert production.one("Deployment", "demo-cmcl") == render(
        values_of("production") | {"rebuild": {}}
    ).one("Deployment", "demo-cmcl")


def test_it_reads_the_bucket_with_the_account_and_keys_of_the_service(production: Release) -> None:
    ours, theirs = (
        environment_of(pod["containers"][0])
        for pod in (
            _pod(production),
            production.one("Deployment", "demo-cmcl")["spec"]["template"]["spec"],
        )
    )
    needed = {name for name in theirs if name.startswith("AWS_")} | {"CMCL_SNAPSHOT_SIGNING_KEY"}
    assert {name: ours[name] for name in needed} == {name: theirs[name] for name in needed}
    assert ours["CMCL_STORE_URI"] == production.settings()["CMCL_STORE_URI"]
    assert _pod(production)["serviceAccountName"] == "demo-cmcl"


@pytest.mark.parametrize("example", ["production", "trial", "gpu"])
def test_no_service_runs_beside_a_restore(example: str) -> None:
    release = render(_values(example, mode="restore"))
    assert release.one("Deployment", "demo-cmcl")["spec"]["replicas"] == 0
    assert release.of_kind("HorizontalPodAutoscaler") == []
    assert "demo-cmcl" not in [
        item["metadata"]["name"] for item in release.of_kind("PodDisruptionBudget")
    ]
    assert _cronjob(release)["suspend"] is True
    assert _pod(release)["containers"][0]["args"] == ["admin", "rebuild", "--verify=full"]
    assert "--from=cronjob/demo-cmcl-rebuild" in release.notes


@pytest.mark.parametrize("example", ["production", "trial"])
def test_a_restore_fills_the_database_of_the_service(example: str) -> None:
    release = render(_values(example, mode="restore"))
    pod = _pod(release)
    url = environment_of(pod["containers"][0])["CMCL_DATABASE_URL"]
    assert url == release.settings()["CMCL_DATABASE_URL"]
    service = release.one("Deployment", "demo-cmcl")["spec"]["template"]["spec"]
    claims = [volume for volume in service["volumes"] if "persistentVolumeClaim" in volume]
    assert [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume] == claims


def test_a_restore_has_no_schedule() -> None:
    with pytest.raises(helm_python.HelmRenderError, match=r"rebuild\.schedule is \"@daily\""):
        render(_values("production", mode="restore", schedule="@daily"))


def test_the_command_of_the_check_runs_with_nothing_but_its_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plane = ControlPlane(tmp_path / "plane")
    plane.create_model()
    plane.record()
    plane.close()
    container = _pod(render(_values("trial")))["containers"][0]
    monkeypatch.chdir(tmp_path)
    for name, value in environment_of(container).items():
        if name.startswith("CMCL_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("CMCL_STORE_URI", plane.store.uri)
    assert main(container["args"]) == 0
    assert "models" in capsys.readouterr().out
    assert [*tmp_path.glob("*.db*")] == []
