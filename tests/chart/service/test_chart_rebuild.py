"""`admin rebuild` in a pod: a check on a schedule, and a lost database rebuilt on demand."""

from pathlib import Path
from typing import Any

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
