"""One version everywhere, a changelog that a release can quote, and workflows that release what we build."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.release import (
    CHARTS,
    NAMED,
    NotReleasable,
    check,
    different_versions,
    version,
)
from tests.architecture.repository import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
RELEASE = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
CHANGELOG = """# Changelog

## [Unreleased]
### Added
- Not yet.

## [0.1.0] - 2026-11-25
### Added
- The first one.

## [0.0.9] - 2026-11-01
- Older.
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files that a release reads, with a changelog that has the version."""
    for name in ("pyproject.toml", *NAMED, *(f"{chart}/Chart.yaml" for chart in CHARTS)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG.replace("0.1.0", version()))
    return tmp_path


def test_everything_has_the_version_of_pyproject() -> None:
    assert list(different_versions()) == []


def test_every_reason_against_a_release_is_reported(tree: Path) -> None:
    chart = tree / "helm" / "Chart.yaml"
    chart.write_text(chart.read_text().replace('appVersion: "', 'appVersion: "9'))
    with pytest.raises(NotReleasable) as refused:
        check("v7.0.0", tree)
    assert str(refused.value).splitlines() == [
        f"the tag is v7.0.0; pyproject.toml requires v{version()}",
        f"helm/Chart.yaml has the appVersion 9{version()}; pyproject.toml has {version()}",
        "CHANGELOG.md has no section '## [7.0.0] - YYYY-MM-DD' with entries",
    ]


@pytest.mark.parametrize("name", NAMED)
def test_an_outdated_tag_is_reported(tree: Path, name: str) -> None:
    file = tree / name
    file.write_text(file.read_text().replace(version(), "0.0.9"))
    assert [*different_versions(tree)] == [
        f"{name} has the tag 0.0.9; pyproject.toml has {version()}"
    ]
    file.write_text("")
    assert [*different_versions(tree)] == [
        f"{name} has the tag none; pyproject.toml has {version()}"
    ]


def test_every_image_of_the_dockerfile_is_released() -> None:
    built = RELEASE["jobs"]["images"]["strategy"]["matrix"]["include"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    final = re.findall(r"^FROM runtime AS (\w+)$", dockerfile, re.MULTILINE)
    assert {entry["target"] for entry in built} == set(final) == {"service", "worker"}
    assert {entry["lock"] for entry in built} == {"worker.lock", "worker-cpu.lock"}
    for entry in built:
        assert (ROOT / "deploy" / "requirements" / entry["lock"]).is_file()


def _steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights_and_an_end(workflow: Path) -> None:
    document = yaml.safe_load(workflow.read_text())
    assert document["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 90 for job in document["jobs"].values())
    uses = [step["uses"] for step in _steps(workflow) if "uses" in step]
    assert uses
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", action) for action in uses)


def test_what_is_released_is_signed_and_attested() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yaml").read_text()
    for command in ("cosign sign --yes", "cosign attest --yes --type cyclonedx"):
        assert command in text
    assert "actions/attest-build-provenance@" in text
    for name in ("images", "chart"):
        assert RELEASE["jobs"][name]["permissions"]["id-token"] == "write"


def test_the_workflow_for_changes_runs_the_local_checks() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yaml").read_text())["jobs"]
    commands = {
        name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()
    }
    assert commands["check"] == ["bash .ci/run"]
    assert commands["images"][-1] == "make images"
