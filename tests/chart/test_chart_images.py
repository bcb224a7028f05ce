"""The Dockerfile and what goes into its two images."""

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from service.launchers.kuberay import RAY_VERSION
from tests.chart.release import ROOT, Release

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCKS = ROOT / "deploy" / "requirements"
EXTRAS = {"service": "service", "worker": "workers"}
TORCH_AND_ITS_LIBRARIES = re.compile(r"torch|triton|nvidia|cuda")


def _pins(lock: Path) -> set[str]:
    """`name==version` of every package, without its markers."""
    return set(re.findall(r"^([\w.-]+==[^ \\]+)", lock.read_text(), re.MULTILINE))


def _names(lock: Path) -> set[str]:
    return {pin.partition("==")[0] for pin in _pins(lock)}


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    result = subprocess.run(
        [hadolint, "--failure-threshold", "style", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout, result.returncode) == ("", 0)


def test_the_service_image_has_no_torch() -> None:
    assert [
        name for name in _names(LOCKS / "service.lock") if TORCH_AND_ITS_LIBRARIES.match(name)
    ] == []
    assert "ray" not in _names(LOCKS / "service.lock")
    assert {"torch", "ray"} <= _names(LOCKS / "worker.lock")


def test_a_worker_without_gpus_lacks_nothing_else() -> None:
    cuda, cpu = (_pins(LOCKS / name) for name in ("worker.lock", "worker-cpu.lock"))
    assert cpu < cuda
    left_out = {pin.partition("==")[0] for pin in cuda - cpu}
    named = re.search(r"^GPU_ONLY := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named is not None
    assert left_out == set(named[1].split())
    assert all(TORCH_AND_ITS_LIBRARIES.match(name) for name in left_out)


@pytest.mark.parametrize("image", EXTRAS)
def test_an_image_has_the_packages_of_its_extra(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"][EXTRAS[image]]]
    names = {re.split(r"[^\w.-]", requirement)[0] for requirement in asked}
    assert names <= _names(LOCKS / f"{image}.lock")


def test_the_wheel_is_built_with_the_build_requirements_of_the_project() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    names = {re.split(r"[^\w.-]", requirement)[0] for requirement in asked}
    assert names <= _names(LOCKS / "build.lock")


@pytest.mark.parametrize("image", EXTRAS)
def test_images_have_the_versions_that_were_tested(image: str) -> None:
    assert _pins(LOCKS / f"{image}.lock") <= _pins(ROOT / "requirements.lock")


@pytest.mark.parametrize("lock", ["service", "worker", "worker-cpu", "build", "sbom"])
def test_every_package_is_pinned_by_digest(lock: str) -> None:
    entries = re.split(r"\n(?=[a-z0-9])", (LOCKS / f"{lock}.lock").read_text())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not any("://" in entry or "--index" in entry for entry in entries)


@pytest.mark.parametrize(
    ("stage", "lock"), [("service", "service.lock"), ("worker", '"${WORKER_LOCK}"')]
)
def test_a_target_installs_its_own_lock(stage: str, lock: str) -> None:
    assert f"COPY --from={stage}-venv /opt/cmcl /opt/cmcl\n" in _stage(stage)
    assert f"--no-deps --require-hashes --requirement {lock} " in _stage(f"{stage}-venv")
    assert "ARG WORKER_LOCK=worker.lock\n" in _stage("worker-venv")


@pytest.mark.parametrize("target", EXTRAS)
def test_images_run_as_the_user_of_the_chart(target: str, trial: Release) -> None:
    assert "\nUSER 10001:10001\n" in _stage(target)
    for template in trial.pod_templates().values():
        context = template["spec"]["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (10001, 10001)


def test_all_clusters_name_the_ray_version_of_the_worker(trial: Release) -> None:
    assert f"ray=={RAY_VERSION}" in _pins(LOCKS / "worker.lock")
    assert trial.one("RayCluster", "demo-cmcl-training")["spec"]["rayVersion"] == RAY_VERSION
    serving = trial.one("RayService", "demo-cmcl-serving")["spec"]["rayClusterConfig"]
    assert serving["rayVersion"] == RAY_VERSION


def test_only_what_is_copied_enters_the_build() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert {_entry(source) for source in sources} == let_in


def _entry(source: str) -> str:
    return "deploy/requirements" if source.startswith("deploy/requirements/") else source


def _stage(name: str) -> str:
    """The lines of one build stage."""
    for stage in re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE):
        if stage.partition("\n")[0].endswith(f" AS {name}"):
            return stage
    raise AssertionError(f"the Dockerfile has no stage {name}")
