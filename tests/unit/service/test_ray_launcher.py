"""Ray's traps, and what the launcher makes of them."""

from inspect import signature

import pytest
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from service.launchers.driver import Driver
from service.launchers.port import LauncherRefused, LauncherUnavailable, LaunchState, Submission
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
    launcher.submit(Submission("job-1-a1", COMMAND))
    assert ray.jobs[-1].entrypoint == "python -m workers.train --store 'file:///with a space'"


def test_the_driver_takes_no_cpu_from_the_ranks(ray: FakeRayJobs, launcher: RayJobLauncher) -> None:
    launcher.submit(Submission("job-1-a1", COMMAND))
    # Any other resource, even an empty one, would let it leave the head.
    assert ray.options == {"metadata": {}, "entrypoint_num_cpus": 0}


def test_ray_is_told_what_the_driver_needs_and_whose_it_is(ray: FakeRayJobs) -> None:
    driver = Driver(
        cpus=0.5,
        memory_bytes=2**30,
        resources={"driver_slot": 1},
        node_labels={"site/pool": "drivers"},
        runtime_env={"env_vars": {"NCCL_DEBUG": "WARN"}},
    )
    launcher = RayJobLauncher("http://ray:8265", driver, connect=lambda _: ray)
    launcher.submit(Submission("job-1-a1", COMMAND, labels={"cmcl/model": "scenes"}))
    assert ray.options == {
        "metadata": {"cmcl/model": "scenes"},
        "entrypoint_num_cpus": 0.5,
        "entrypoint_memory": 2**30,
        "entrypoint_resources": {"driver_slot": 1},
        "entrypoint_label_selector": {"site/pool": "drivers"},
        "runtime_env": {"env_vars": {"NCCL_DEBUG": "WARN"}},
    }


def test_every_option_is_one_that_rays_client_has(ray: FakeRayJobs) -> None:
    everything = Driver(1, 1, {"a": 1}, {"a": "b"}, {"env_vars": {}})
    RayJobLauncher("http://ray", everything, connect=lambda _: ray).submit(
        Submission("job-1-a1", COMMAND)
    )
    assert set(ray.options) <= set(signature(JobSubmissionClient.submit_job).parameters)


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
        launcher.submit(Submission("job-1-a1", COMMAND))
    launcher.submit(Submission("job-1-a1", COMMAND))
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
        lambda: launcher.submit(Submission("job-1-a1", COMMAND)),
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
        launcher.submit(Submission("job-1-a1", COMMAND))


def test_drivers_that_nobody_submitted_are_not_ours(launcher: RayJobLauncher) -> None:
    assert launcher.status("None").state == LaunchState.UNKNOWN


def test_a_long_message_keeps_its_first_and_last_lines(
    ray: FakeRayJobs, launcher: RayJobLauncher
) -> None:
    launcher.submit(Submission("job-1-a1", COMMAND))
    ray.end("job-1-a1", JobStatus.FAILED, "exit code 1\n" + "noise\n" * 4000 + "out of memory")
    message = launcher.status("job-1-a1").message
    assert message.startswith("exit code 1\n")
    assert message.endswith("out of memory")
    assert len(message) < 5000
