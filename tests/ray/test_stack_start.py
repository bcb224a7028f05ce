"""The start of a local stack on a machine that is too busy for Ray Serve's limits."""

from pathlib import Path

import httpx
import psutil
import pytest

from cmcl.stack import LocalStack
from cmcl.stack_host import Ports
from tests.ray.attempts import title, wait_until


@pytest.mark.ray
def test_a_stack_starts_although_serve_replaces_proxies_that_are_not_ready(tmp_path: Path) -> None:
    reported: list[str] = []
    # Importing Serve takes longer on any machine. Serve permits each further proxy half a second more.
    impatient = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "0.5"}
    stack = LocalStack(
        tmp_path, Ports.free(), ranks=1, extra_environment=impatient, report=reported.append
    )
    with stack:
        assert any(line.endswith("Trying again (2 of 5)") for line in reported), reported
        ray = psutil.Process(stack.processes["ray"].pid)
        # It would end the head where it cannot reach the raylet within 30 s.
        started = [title(each) for each in ray.children(recursive=True)]
        assert not [each for each in started if "ray.util.client.server" in each]
        _check_endpoint(stack)


def _check_endpoint(stack: LocalStack) -> None:
    """What deployed it only waits for its signal, in memory that torch would exceed, and then withdraws it."""
    process = psutil.Process(stack.processes["embeddings"].pid)
    wait_until(lambda: "workers.serve.withdrawal" in process.cmdline())
    assert process.memory_full_info().uss < 100 * 2**20
    assert httpx.get(f"{stack.embeddings_url}/readyz").is_success
    process.terminate()
    stack.processes.pop("embeddings").wait()
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{stack.embeddings_url}/readyz").raise_for_status()
