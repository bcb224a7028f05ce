"""One suite for every launcher: the fake of the tests, Ray's Jobs API, and KubeRay."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from service.launchers.kuberay.launcher import KubeRayLauncher
from service.launchers.kuberay.resource import Site
from service.launchers.port import Launcher, LaunchState, LaunchStatus, Submission
from service.launchers.ray_jobs import RayJobLauncher
from tests.fakes.kubernetes_api import KubernetesApi, kubernetes_api
from tests.fakes.launcher import FakeLauncher
from tests.fakes.ray_jobs import FakeRayJobs

_SECONDS = 120.0


class Rig(Protocol):
    """A launcher, and a hand on what it runs."""

    launcher: Launcher

    def command(self, name: str) -> list[str]:
        """A command that runs until the test ends it."""
        ...

    def end(self, name: str, code: int) -> None:
        """Let it end with that exit code."""
        ...


class FakeRig:
    """Around the launcher of the tests."""

    def __init__(self) -> None:
        self.launcher = FakeLauncher()

    def command(self, name: str) -> list[str]:
        return ["sleep", name]

    def end(self, name: str, code: int) -> None:
        state = LaunchState.FAILED if code else LaunchState.SUCCEEDED
        self.launcher.end(name, state, f"exit code {code}" if code else "")


class RayRig:
    """Around the adapter for Ray, with Ray's API in memory."""

    def __init__(self) -> None:
        self.ray = FakeRayJobs()
        self.launcher = RayJobLauncher("http://ray", transport=self.ray.transport)

    def command(self, name: str) -> list[str]:
        return ["sleep", name]

    def end(self, name: str, code: int) -> None:
        status = "FAILED" if code else "SUCCEEDED"
        self.ray.end(name, status, f"exit code {code}" if code else "")


class KubeRayRig:
    """Around the adapter for KubeRay, with the API of Kubernetes over HTTP, and no queue."""

    def __init__(self, api: KubernetesApi) -> None:
        self.api = api
        self.launcher = KubeRayLauncher(Site("an-image", "2.60.0"), api.connect)

    def command(self, name: str) -> list[str]:
        return ["sleep", name]

    def end(self, name: str, code: int) -> None:
        status, deployment = ("FAILED", "Failed") if code else ("SUCCEEDED", "Complete")
        self.api.become(name, status, deployment, f"exit code {code}" if code else "")


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with kubernetes_api() as served:
        yield served


@pytest.fixture(params=["fake", "ray", "kuberay"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Each launcher in turn; nothing of it runs on afterwards."""
    rigs: dict[str, Callable[[], Rig]] = {
        "kuberay": lambda: KubeRayRig(request.getfixturevalue("api")),
        "fake": FakeRig,
        "ray": RayRig,
    }
    made = rigs[request.param]()
    yield made
    made.launcher.stop("job-1-a1")
    _wait_until_ended(made.launcher, "job-1-a1")


def _wait_until_ended(launcher: Launcher, name: str) -> LaunchStatus:
    deadline = time.monotonic() + _SECONDS
    while not (status := launcher.status(name)).has_ended:
        assert time.monotonic() < deadline, f"{name} did not end"
        time.sleep(0.02)
    return status


def test_an_unknown_id_is_unknown(rig: Rig) -> None:
    assert rig.launcher.status("job-9-a1").state == LaunchState.UNKNOWN


def test_stopping_an_unknown_id_is_no_error(rig: Rig) -> None:
    rig.launcher.stop("job-9-a1")


def test_what_was_submitted_has_not_ended(rig: Rig) -> None:
    rig.launcher.submit(Submission("job-1-a1", rig.command("job-1-a1")))
    assert not rig.launcher.status("job-1-a1").has_ended


def test_exit_code_zero_is_success(rig: Rig) -> None:
    rig.launcher.submit(Submission("job-1-a1", rig.command("job-1-a1")))
    rig.end("job-1-a1", 0)
    assert _wait_until_ended(rig.launcher, "job-1-a1").state == LaunchState.SUCCEEDED


def test_another_exit_code_is_failure_with_a_message(rig: Rig) -> None:
    rig.launcher.submit(Submission("job-1-a1", rig.command("job-1-a1")))
    rig.end("job-1-a1", 3)
    status = _wait_until_ended(rig.launcher, "job-1-a1")
    assert status.state == LaunchState.FAILED
    assert "exit code 3" in status.message


def test_a_stop_ends_it(rig: Rig) -> None:
    rig.launcher.submit(Submission("job-1-a1", rig.command("job-1-a1")))
    rig.launcher.stop("job-1-a1")
    assert _wait_until_ended(rig.launcher, "job-1-a1").state == LaunchState.STOPPED


@pytest.mark.parametrize("ended", [False, True])
def test_the_same_id_again_runs_nothing_twice(rig: Rig, ended: bool) -> None:
    rig.launcher.submit(Submission("job-1-a1", rig.command("job-1-a1")))
    if ended:
        rig.end("job-1-a1", 3)
        _wait_until_ended(rig.launcher, "job-1-a1")
    before = rig.launcher.status("job-1-a1")
    rig.launcher.submit(Submission("job-1-a1", rig.command("job-1-a1")))
    assert rig.launcher.status("job-1-a1") == before


def test_an_ended_submission_can_be_deleted(rig: Rig) -> None:
    rig.launcher.submit(Submission("job-1-a1", rig.command("job-1-a1")))
    rig.end("job-1-a1", 3)
    _wait_until_ended(rig.launcher, "job-1-a1")
    rig.launcher.forget("job-1-a1")
    assert rig.launcher.status("job-1-a1").state == LaunchState.UNKNOWN
    rig.launcher.forget("job-1-a1")


def test_a_running_submission_is_not_deleted(rig: Rig) -> None:
    rig.launcher.submit(Submission("job-1-a1", rig.command("job-1-a1")))
    rig.launcher.forget("job-1-a1")
    assert not rig.launcher.status("job-1-a1").has_ended


def test_stopping_what_has_ended_changes_nothing(rig: Rig) -> None:
    rig.launcher.submit(Submission("job-1-a1", rig.command("job-1-a1")))
    rig.end("job-1-a1", 0)
    _wait_until_ended(rig.launcher, "job-1-a1")
    rig.launcher.stop("job-1-a1")
    assert rig.launcher.status("job-1-a1").state == LaunchState.SUCCEEDED
