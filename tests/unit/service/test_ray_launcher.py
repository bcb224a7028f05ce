"""Ray's traps, and what the launcher makes of them."""

import pytest
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from service.launchers.port import LauncherRefused, LauncherUnavailable, LaunchState
from service.launchers.ray_job import RayJobLauncher
from tests.fakes.ray_jobs import FakeRayJobs

COMMAND = ["python", "-m", "workers.train", "--store", "file:///with a space"]


@pytest.fixture
def ray() -> FakeRayJobs:
    return FakeRayJobs()


@pytest.fixture
def launcher(ray: FakeRayJobs) -> RayJobLauncher:
    return RayJobLauncher("http://ray:8265", connect=lambda _: ray)


def test_the_entrypoint_is_one_quoted_line(ray: FakeRayJobs, launcher: RayJobLauncher) -> None:
    launcher.submit("job-1-a1", COMMAND)
    assert ray.jobs[-1].entrypoint == "python -m workers.train --store 'file:///with a space'"


def test_the_driver_takes_no_cpu_from_the_ranks(ray: FakeRayJobs, launcher: RayJobLauncher) -> None:
    launcher.submit("job-1-a1", COMMAND)
    assert ray.options == {"entrypoint_num_cpus": 0}


def test_nothing_is_asked_before_the_first_use() -> None:
    def connect(_: str) -> FakeRayJobs:
        raise ConnectionError("nobody there")

    launcher = RayJobLauncher("http://ray:8265", connect=connect)
    with pytest.raises(LauncherUnavailable, match=r"http://ray:8265.*nobody there"):
        launcher.status("job-1-a1")


def test_the_connection_is_tried_again(ray: FakeRayJobs) -> None:
    outcomes: list[Exception | None] = [ConnectionError("not yet"), None]

    def connect(_: str) -> FakeRayJobs:
        if (error := outcomes.pop(0)) is not None:
            raise error
        return ray

    launcher = RayJobLauncher("http://ray:8265", connect=connect)
    with pytest.raises(LauncherUnavailable):
        launcher.submit("job-1-a1", COMMAND)
    launcher.submit("job-1-a1", COMMAND)
    assert launcher.status("job-1-a1").state == LaunchState.PENDING


@pytest.mark.parametrize(
    "error",
    [
        requests.ConnectionError("refused"),
        requests.Timeout("slow"),
        ConnectionError("gone"),
        RuntimeError("status code 503"),
        AuthenticationError("no token"),
    ],
)
def test_an_outage_is_worth_a_retry(
    ray: FakeRayJobs, launcher: RayJobLauncher, error: Exception
) -> None:
    ray.error = error
    for ask in (
        lambda: launcher.submit("job-1-a1", COMMAND),
        lambda: launcher.status("job-1-a1"),
        lambda: launcher.stop("job-1-a1"),
    ):
        with pytest.raises(LauncherUnavailable):
            ask()


def test_ray_that_answers_and_does_not_take_it_refuses(
    ray: FakeRayJobs, launcher: RayJobLauncher
) -> None:
    ray.refuses = True
    with pytest.raises(LauncherRefused, match="job-1-a1"):
        launcher.submit("job-1-a1", COMMAND)


def test_drivers_that_nobody_submitted_are_not_ours(launcher: RayJobLauncher) -> None:
    assert launcher.status("None").state == LaunchState.UNKNOWN


def test_a_long_message_keeps_its_first_and_last_lines(
    ray: FakeRayJobs, launcher: RayJobLauncher
) -> None:
    launcher.submit("job-1-a1", COMMAND)
    ray.end("job-1-a1", JobStatus.FAILED, "exit code 1\n" + "noise\n" * 4000 + "out of memory")
    message = launcher.status("job-1-a1").message
    assert message.startswith("exit code 1\n")
    assert message.endswith("out of memory")
    assert len(message) < 5000
