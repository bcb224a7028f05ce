"""A real server that is stopped does not wait for its listeners."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def _service(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "CMCL_AUTH": "off",
        "CMCL_PORT": str(port),
        "CMCL_DATABASE_URL": f"sqlite:///{folder / 'cmcl.db'}",
        "CMCL_STORE_URI": (folder / "store").as_uri(),
    }
    root = Path(__file__).parents[4]
    command = [sys.executable, "-m", "service"]
    service = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE)
    try:
        yield service, f"http://127.0.0.1:{port}"
    finally:
        service.kill()
        service.wait()
        assert service.stderr is not None
        service.stderr.close()


def _wait_for(url: str) -> None:
    for _ in range(600):
        try:
            httpx.get(f"{url}/healthz")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the service did not start")


def test_a_listener_does_not_keep_a_service_from_ending(tmp_path: Path) -> None:
    with _service(tmp_path) as (service, url):
        _wait_for(url)
        headers = {"Accept": "text/event-stream"}
        with httpx.stream("GET", f"{url}/v1/events", headers=headers, timeout=30) as response:
            lines = response.iter_lines()
            assert next(lines) == "retry: 2000"
            service.send_signal(signal.SIGTERM)
            # One that is cut off at the end of the time for it would raise.
            assert [line for line in lines if line] == []
            # The server passes the signal on to itself once everything is done.
            assert service.wait(60) in (0, -signal.SIGTERM)
        assert service.stderr is not None
        assert b"Traceback" not in service.stderr.read()
