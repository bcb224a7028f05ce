"""Quirks of Ray's Jobs API, and how the launcher handles them."""

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import get_args

import httpx
import pytest
from ray.dashboard.modules.job.common import JobSubmitRequest
from ray.job_submission import JobStatus

from service.launchers.port import (
    ClusterResources,
    LauncherRejected,
    LauncherUnavailable,
    LaunchState,
    Submission,
    status_of,
)
from service.launchers.ray_cluster import RayJob, RayJobLauncher, RayToken
from tests.fakes.ray_jobs import FakeRayJobs

COMMAND = ["python", "-m", "workers.train", "--store", "file:///with a space"]


@pytest.fixture
def ray() -> FakeRayJobs:
    return FakeRayJobs()


@pytest.fixture
def launcher(ray: FakeRayJobs) -> RayJobLauncher:
    return RayJobLauncher("http://ray:8265", transport=ray.transport)


def sent_with(environment: dict[str, str]) -> str | None:
    """The header of a request that is authenticated from that environment."""
    request = httpx.Request("GET", "http://ray")
    next(RayToken(environment).auth_flow(request))
    return request.headers.get("Authorization")


def test_the_entrypoint_is_one_quoted_line(ray: FakeRayJobs, launcher: RayJobLauncher) -> None:
    launcher.submit(Submission("job-1-a1", COMMAND))
    assert ray.jobs[-1].entrypoint == "python -m workers.train --store 'file:///with a space'"


def test_the_driver_takes_no_cpu_from_the_ranks(ray: FakeRayJobs, launcher: RayJobLauncher) -> None:
    launcher.submit(Submission("job-1-a1", COMMAND))
    # Any other resource, even an empty one, would let it leave the head.
    assert ray.options == {"metadata": {}, "entrypoint_num_cpus": 0}


def test_ray_gets_the_runtime_environment_and_the_owner(ray: FakeRayJobs) -> None:
    runtime_env = {"env_vars": {"NCCL_DEBUG": "WARN"}}
    launcher = RayJobLauncher("http://ray:8265", runtime_env, ray.transport)
    launcher.submit(Submission("job-1-a1", COMMAND, labels={"cmcl/model": "scenes"}))
    assert ray.options == {
        "metadata": {"cmcl/model": "scenes"},
        "entrypoint_num_cpus": 0,
        "runtime_env": runtime_env,
    }
    assert set(ray.options) <= {field.name for field in fields(JobSubmitRequest)}


def test_every_ray_state_is_mapped() -> None:
    states = get_args(RayJob.model_fields["status"].annotation)
    assert sorted(states) == sorted(status.value for status in JobStatus)
    for status in JobStatus:
        ours = RayJob(status=status.value).launch_status
        assert ours.has_ended == status.is_terminal()


def test_an_address_without_a_server_is_named_in_the_error() -> None:
    launcher = RayJobLauncher("http://127.0.0.1:1")
    with pytest.raises(LauncherUnavailable, match=r"http://127\.0\.0\.1:1: .*refused"):
        status_of(launcher, "job-1-a1")


@pytest.mark.parametrize(
    "outage",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.Response(503, text="no backend"),
        httpx.Response(401, text="Missing authentication token"),
        httpx.Response(404, text="a proxy that does not know Ray"),
        httpx.Response(200, text="<html>a page to sign in</html>"),
    ],
    ids=str,
)
def test_an_outage_is_worth_a_retry(
    ray: FakeRayJobs, launcher: RayJobLauncher, outage: httpx.Response | Exception
) -> None:
    ray.outage = outage
    with pytest.raises(LauncherUnavailable):
        launcher.resources()
    for ask in (partial(status_of, launcher), launcher.forget, launcher.log):
        with pytest.raises(LauncherUnavailable):
            ask("job-1-a1")


@pytest.mark.parametrize("outage", [httpx.ConnectError("refused"), httpx.Response(503)], ids=str)
def test_an_outage_refuses_nothing(
    ray: FakeRayJobs, launcher: RayJobLauncher, outage: httpx.Response | Exception
) -> None:
    ray.outage = outage
    with pytest.raises(LauncherUnavailable):
        launcher.submit(Submission("job-1-a1", COMMAND))
    with pytest.raises(LauncherUnavailable):
        launcher.stop("job-1-a1")
    ray.outage = None
    launcher.submit(Submission("job-1-a1", COMMAND))
    assert status_of(launcher, "job-1-a1").state == LaunchState.PENDING


def test_an_error_response_of_ray_is_a_rejection(
    ray: FakeRayJobs, launcher: RayJobLauncher
) -> None:
    ray.refuses = True
    with pytest.raises(LauncherRejected, match=r"(?s)job-1-a1: 500 .*something in prose"):
        launcher.submit(Submission("job-1-a1", COMMAND))


def test_a_driver_that_has_no_node_yet_has_no_log(
    ray: FakeRayJobs, launcher: RayJobLauncher
) -> None:
    launcher.submit(Submission("job-1-a1", COMMAND))
    ray.logs["job-1-a1"] = "reading\n"
    ray.jobs[-1].driver_node_id = None
    assert launcher.log("job-1-a1") == ""
    ray.jobs[-1].driver_node_id = "node-1"
    assert launcher.log("job-1-a1") == "reading\n"


def test_drivers_without_a_submission_id_are_ignored(launcher: RayJobLauncher) -> None:
    assert status_of(launcher, "None").state == LaunchState.UNKNOWN


def test_a_long_message_keeps_its_first_and_last_lines(
    ray: FakeRayJobs, launcher: RayJobLauncher
) -> None:
    launcher.submit(Submission("job-1-a1", COMMAND))
    ray.end("job-1-a1", "FAILED", "exit code 1\n" + "noise\n" * 4000 + "out of memory")
    message = status_of(launcher, "job-1-a1").message
    assert message.startswith("exit code 1\n")
    assert message.endswith("out of memory")
    assert len(message) < 5000


def test_the_token_is_found_where_rays_own_programs_find_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    assert sent_with(token) == "Bearer from-a-file"
    assert sent_with(token | {"RAY_AUTH_TOKEN": "a-token"}) == "Bearer a-token"


def test_no_token_is_sent_unless_required() -> None:
    assert sent_with({}) is None
    assert sent_with({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "a-token"}) is None


def test_a_missing_token_is_reported(tmp_path: Path) -> None:
    missing = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    with pytest.raises(ValueError, match=r"RAY_AUTH_TOKEN is not set, and .* cannot be read"):
        sent_with(missing)


def test_the_cluster_has_what_its_nodes_have_that_are_alive(launcher: RayJobLauncher) -> None:
    assert launcher.resources() == ClusterResources(cpus=8, gpus=2, memory_bytes=32e9)
