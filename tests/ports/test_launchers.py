"""One suite for every launcher: the fake of the tests, Ray's Jobs API, KubeRay, and the driver of attempts."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import pytest

from cmcl.contract.job import AttemptOutcome, AttemptRequest
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from service.launchers.kuberay import KubeRayLauncher, Site
from service.launchers.port import (
    LOG_BYTES,
    LOG_LINES,
    Launcher,
    LauncherUnavailable,
    LaunchState,
    LaunchStatus,
    Submission,
    status_of,
)
from service.launchers.ray_cluster import DriverLauncher, RayJobLauncher
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.kubernetes_api import PODS, KubernetesApi, kubernetes_api
from tests.fakes.launcher import FakeLauncher
from tests.fakes.ray_jobs import FakeRayJobs

_SECONDS = 120.0


class Rig(Protocol):
    """A launcher, and control of what it runs."""

    @property
    def launcher(self) -> Launcher: ...

    def command(self, name: str) -> list[str]:
        """A command that runs until the test ends it."""
        ...

    def end(self, name: str, code: int) -> None:
        """End it with that exit code."""
        ...

    def print(self, name: str, text: str) -> None:
        """Set what it has printed."""
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

    def print(self, name: str, text: str) -> None:
        self.launcher.logs[name] = text


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

    def print(self, name: str, text: str) -> None:
        self.ray.logs[name] = text


class DriverRig:
    """Around requests in object storage, and a driver that ends them."""

    def __init__(self, store: LocalStore) -> None:
        processes = FakeLauncher()
        processes.submit(Submission("driver-1", ["a driver"]))
        self.store = store
        self.launcher = DriverLauncher(store, processes, lambda: "driver-1")

    def command(self, name: str) -> list[str]:
        return ["sleep", name]

    def end(self, name: str, code: int) -> None:
        self._write(name, "failed" if code else "succeeded", f"exit code {code}" if code else "")
        self.store.delete(layout.attempt_request(name))

    def print(self, name: str, text: str) -> None:
        # Only a failure has a log.
        self._write(name, "failed", text)

    def _write(self, name: str, state: Literal["failed", "succeeded"], message: str) -> None:
        outcome = AttemptOutcome(state=state, message=message)
        self.store.put(layout.attempt_outcome(name), outcome.model_dump_json().encode())


class KubeRayRig:
    """Around the adapter for KubeRay, with the API of Kubernetes over HTTP, and no queue."""

    def __init__(self, api: KubernetesApi) -> None:
        self.api = api
        site = Site("an-image", submission_mode="K8sJobMode")
        self.launcher = KubeRayLauncher(site, api.connect)
        api.others[PODS] = {}

    def command(self, name: str) -> list[str]:
        return ["sleep", name]

    def end(self, name: str, code: int) -> None:
        status, deployment = ("FAILED", "Failed") if code else ("SUCCEEDED", "Complete")
        self.api.become(name, status, deployment, f"exit code {code}" if code else "")

    def print(self, name: str, text: str) -> None:
        self.api.has(PODS, f"{name}-x7k2p", {"job-name": name})
        self.api.logs[f"{name}-x7k2p", "ray-job-submitter"] = text


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with kubernetes_api() as served:
        yield served


@pytest.fixture(params=["fake", "ray", "kuberay", "driver"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """Each launcher in turn; what it runs is stopped afterwards."""
    rigs: dict[str, Callable[[], Rig]] = {
        "kuberay": lambda: KubeRayRig(request.getfixturevalue("api")),
        "fake": FakeRig,
        "ray": RayRig,
        "driver": lambda: DriverRig(LocalStore(tmp_path)),
    }
    made = rigs[request.param]()
    yield made
    made.launcher.stop("job-1-a1")
    _wait_until_ended(made.launcher, "job-1-a1")


def _wait_until_ended(launcher: Launcher, name: str) -> LaunchStatus:
    deadline = time.monotonic() + _SECONDS
    while not (status := status_of(launcher, name)).has_ended:
        assert time.monotonic() < deadline, f"{name} did not end"
        time.sleep(0.02)
    return status


def _submission(rig: Rig) -> Submission:
    request = AttemptRequest(
        job="job-1",
        attempt=1,
        owner="lab",
        ranks=1,
        min_ranks=1,
        gpus_per_rank=0,
        idle_seconds=0,
    )
    return Submission("job-1-a1", rig.command("job-1-a1"), attempt=request)


def test_an_unknown_id_is_unknown(rig: Rig) -> None:
    assert status_of(rig.launcher, "job-9-a1").state == LaunchState.UNKNOWN


def test_stopping_an_unknown_id_is_no_error(rig: Rig) -> None:
    rig.launcher.stop("job-9-a1")


def test_what_was_submitted_has_not_ended(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    assert not status_of(rig.launcher, "job-1-a1").has_ended


def test_exit_code_zero_is_success(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    rig.end("job-1-a1", 0)
    assert _wait_until_ended(rig.launcher, "job-1-a1").state == LaunchState.SUCCEEDED


def test_another_exit_code_is_failure_with_a_message(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    rig.end("job-1-a1", 3)
    status = _wait_until_ended(rig.launcher, "job-1-a1")
    assert status.state == LaunchState.FAILED
    assert "exit code 3" in status.message


def test_a_stop_ends_it(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    rig.launcher.stop("job-1-a1")
    assert _wait_until_ended(rig.launcher, "job-1-a1").state == LaunchState.STOPPED


@pytest.mark.parametrize("ended", [False, True])
def test_the_same_id_again_runs_nothing_twice(rig: Rig, ended: bool) -> None:
    rig.launcher.submit(_submission(rig))
    if ended:
        rig.end("job-1-a1", 3)
        _wait_until_ended(rig.launcher, "job-1-a1")
    before = status_of(rig.launcher, "job-1-a1")
    rig.launcher.submit(_submission(rig))
    assert status_of(rig.launcher, "job-1-a1") == before


def test_an_ended_submission_can_be_deleted(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    rig.end("job-1-a1", 3)
    _wait_until_ended(rig.launcher, "job-1-a1")
    rig.launcher.forget("job-1-a1")
    assert status_of(rig.launcher, "job-1-a1").state == LaunchState.UNKNOWN
    rig.launcher.forget("job-1-a1")


def test_a_running_submission_is_not_deleted(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    rig.launcher.forget("job-1-a1")
    assert not status_of(rig.launcher, "job-1-a1").has_ended


def test_stopping_what_has_ended_changes_nothing(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    rig.end("job-1-a1", 0)
    _wait_until_ended(rig.launcher, "job-1-a1")
    rig.launcher.stop("job-1-a1")
    assert status_of(rig.launcher, "job-1-a1").state == LaunchState.SUCCEEDED


def test_a_log_is_read_while_it_runs_and_after_its_end(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    assert rig.launcher.log("job-1-a1") == ""
    rig.print("job-1-a1", "reading é\n")
    assert rig.launcher.log("job-1-a1") == "reading é\n"
    rig.end("job-1-a1", 3)
    _wait_until_ended(rig.launcher, "job-1-a1")
    rig.print("job-1-a1", "reading é\nTraceback\n")
    assert rig.launcher.log("job-1-a1") == "reading é\nTraceback\n"


def test_an_unknown_id_has_no_log(rig: Rig) -> None:
    assert rig.launcher.log("job-9-a1") == ""


def test_of_a_long_log_the_last_lines_are_read(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    rig.print("job-1-a1", "".join(f"line {number}\n" for number in range(5000)))
    lines = rig.launcher.log("job-1-a1").splitlines()
    assert lines[-1] == "line 4999"
    assert len(lines) <= LOG_LINES


def test_of_long_lines_the_last_bytes_are_read(rig: Rig) -> None:
    rig.launcher.submit(_submission(rig))
    rig.print("job-1-a1", "".join(f"{number} {'é' * 1000}\n" for number in range(200)))
    log = rig.launcher.log("job-1-a1")
    assert LOG_BYTES / 2 < len(log.encode()) <= LOG_BYTES
    assert log.endswith(f"199 {'é' * 1000}\n")
    assert set(map(len, log.splitlines())) == {len("199 ") + 1000}, "the first line is whole"


def test_a_requested_attempt_waits_while_no_driver_runs_and_goes_on_with_the_next(
    tmp_path: Path,
) -> None:
    processes, drivers = FakeLauncher(), ["driver-1"]
    launcher = DriverLauncher(LocalStore(tmp_path), processes, lambda: drivers[-1])
    submission = _submission(DriverRig(LocalStore(tmp_path)))
    launcher.submit(submission)
    assert status_of(launcher, submission.id).state == LaunchState.PENDING
    for _ in range(2):
        processes.submit(Submission(drivers[-1], ["a driver"]))
        assert status_of(launcher, submission.id).state == LaunchState.RUNNING
        processes.end(drivers[-1], LaunchState.FAILED, "killed")
        assert status_of(launcher, submission.id).state == LaunchState.PENDING
        drivers.append("driver-2")


def test_an_outage_of_the_cluster_or_of_the_store_is_one_of_the_launcher(tmp_path: Path) -> None:
    store, processes = FlakyStore(LocalStore(tmp_path)), FakeLauncher()
    launcher = DriverLauncher(store, processes, lambda: "driver-1")
    submission = _submission(DriverRig(LocalStore(tmp_path)))
    launcher.submit(submission)
    processes.is_down = True
    with pytest.raises(LauncherUnavailable):
        status_of(launcher, submission.id)
    processes.is_down, store.broken = False, "attempts/"
    calls: list[Callable[[], object]] = [
        lambda: launcher.submit(submission),
        lambda: status_of(launcher, submission.id),
        lambda: launcher.stop(submission.id),
        lambda: launcher.forget(submission.id),
    ]
    for call in calls:
        with pytest.raises(LauncherUnavailable):
            call()


def test_a_submission_after_a_stop_trains_nothing(tmp_path: Path) -> None:
    """By a replica that was delayed."""
    rig = DriverRig(LocalStore(tmp_path))
    submission = _submission(rig)
    rig.launcher.submit(submission)
    rig.launcher.stop(submission.id)
    rig.launcher.submit(submission)
    assert list(rig.store.keys(layout.attempts())) == []
    assert status_of(rig.launcher, submission.id).state == LaunchState.STOPPED


def test_an_outcome_that_cannot_be_read_is_a_failure_and_hides_no_other(tmp_path: Path) -> None:
    rig = DriverRig(LocalStore(tmp_path))
    rig.launcher.submit(_submission(rig))
    rig.store.put(layout.attempt_outcome("job-2-a1"), b"{")
    found = rig.launcher.statuses(["job-1-a1", "job-2-a1"])
    assert [found[name].state for name in found] == [LaunchState.RUNNING, LaunchState.FAILED]
