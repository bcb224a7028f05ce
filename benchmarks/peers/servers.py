"""Start and stop the peers as processes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cmcl.stack_host import Ports

_READY_SECONDS = 120.0
_STOP_SECONDS = 10.0
INFINITY_MODEL = "measured"
# No downloads, no telemetry; one thread, like all servers here.
_INFINITY_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "OMP_NUM_THREADS": "1",
}
# The largest request fits into one batch. Other options are defaults, except those that need a GPU.
_INFINITY_OPTIONS = (
    *("--engine", "torch", "--device", "cpu", "--dtype", "float32", "--batch-size", "256"),
    *("--no-bettertransformer", "--no-compile", "--url-prefix", "/v1", "--log-level", "warning"),
)


class PeerError(Exception):
    """A peer did not start. The message names its log."""


@contextmanager
def bare(folder: Path, width: int) -> Iterator[str]:
    """Yield the address of bare FastAPI and uvicorn with the same heads."""
    port = Ports.free().service
    command = [
        *(sys.executable, "-m", "benchmarks.peers.bare"),
        *("--port", str(port), "--width", str(width)),
    ]
    with _running(command, folder / "bare.log", port, {}) as address:
        yield address


@contextmanager
def infinity(folder: Path, programs: Path, model: Path) -> Iterator[str]:
    """Yield the address of Infinity serving `model`; `programs` has its interpreter."""
    port = Ports.free().service
    command = [
        *(str(programs / "infinity_emb"), "v2", "--model-id", str(model)),
        *("--served-model-name", INFINITY_MODEL, *_INFINITY_OPTIONS),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    environment = {**_INFINITY_ENVIRONMENT, "HF_HOME": str(folder / "hugging-face")}
    with _running(command, folder / "infinity.log", port, environment) as address:
        yield address


@contextmanager
def _running(
    command: Sequence[str], log: Path, port: int, environment: Mapping[str, str]
) -> Iterator[str]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
    try:
        _wait(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server listens, which implies that it is ready."""
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise PeerError(f"a peer did not start; see {log}")
