"""Two Ray clusters on one machine: each runs its own jobs."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cmcl.stack import LocalStack
from cmcl.stack_host import Ports

SECONDS = 300.0
TELL = "python -c \"import os; print(os.environ['RAY_ADDRESS'])\""


@pytest.fixture
def younger(stack: LocalStack, tmp_path: Path) -> Iterator[LocalStack]:
    """A Ray cluster that started after the session's, without other parts of a stack."""
    other = LocalStack(tmp_path, Ports.free(), ranks=1)
    (tmp_path / "logs").mkdir()
    try:
        other.start_ray()
        other.wait_for_ray()
        yield other
    finally:
        other.stop()


def told_by_a_job(stack: LocalStack) -> str:
    """The Ray address that a job of this stack uses."""
    with httpx.Client(base_url=stack.dashboard_url, timeout=SECONDS) as client:
        client.headers.update(stack.ray_headers)
        job = client.post("/api/jobs/", json={"entrypoint": TELL}).json()["submission_id"]
        deadline = time.monotonic() + SECONDS
        while client.get(f"/api/jobs/{job}").json()["status"] != "SUCCEEDED":
            assert time.monotonic() < deadline, client.get(f"/api/jobs/{job}").text
            time.sleep(0.1)
        logs: str = client.get(f"/api/jobs/{job}/logs").json()["logs"]
    return logs.rsplit(maxsplit=1)[-1]


@pytest.mark.ray
def test_a_job_goes_to_the_ray_that_runs_it_and_not_to_the_one_that_started_last(
    stack: LocalStack, younger: LocalStack
) -> None:
    for each in (stack, younger):
        assert told_by_a_job(each).endswith(f":{each.ports.ray}")
