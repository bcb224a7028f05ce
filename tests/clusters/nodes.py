"""Several Ray nodes on this machine, each with its own address, so that ranks run on different nodes.

Killing a node kills all its processes, like the loss of a machine.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.processes import family

_START_SECONDS = 300.0
_TRIES = 3
_PROGRAMS = Path(sys.executable).parent
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
}


class NodesError(Exception):
    """A node did not start; the message names its log."""


class Nodes:
    """A head, and nodes with one CPU each, so that every rank has its own node.

    `cpus_of_head`: with 1, the head gets a rank as well.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        cpus_of_head: int = 0,
        others: Sequence[str] = ("127.0.0.2", "127.0.0.3"),
    ) -> None:
        self.folder = folder
        self._cpus_of_head, self._others = cpus_of_head, others
        # Short, because the path of a Unix socket has at most 107 characters. Separate, because Ray
        # stores the address of the machine's current cluster there.
        self._files = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        own = {"RAY_TMPDIR": self._files.name}
        self._environment = {**os.environ, **_ENVIRONMENT, **own, **environment}
        self._environment.pop("RAY_ADDRESS", None)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._port = _free_port()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Address of the head."""
        return f"127.0.0.1:{self._port}"

    def _start(self) -> None:
        """Start all nodes, with retries.

        Ray's client server is unused here but cannot be disabled. On a very busy machine its start
        exceeds half a minute, and the head then exits.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                self.start_head()
                for ip in self._others:
                    self.add(ip)
            except NodesError:
                self._end_all()
                if not tries_left:
                    raise
            else:
                return

    def start_head(self) -> None:
        """Start the head, always at the same address."""
        options = (
            f"--port={self._port}",
            # Ray Train's cleanup queries the dashboard for live controllers.
            f"--dashboard-port={_free_port()}",
            # The node would exit if another Ray uses the default port.
            f"--ray-client-server-port={_free_port()}",
        )
        self._ray("127.0.0.1", "--head", *options)

    def add(self, ip: str) -> None:
        """Start a node. Not concurrently: Ray would give both the same socket names."""
        self._ray(ip, f"--address={self.address}")

    def kill(self, ip: str) -> None:
        """Kill the node with all its processes."""
        _end(self.processes.pop(ip))

    def start_driver(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        """Start a driver on the head, with a log of that name."""
        return self._spawn(name, command, RAY_ADDRESS=self.address)

    def log(self, name: str) -> Path:
        """Return the path of a process's log."""
        return self.folder / f"{name}.log"

    def stop(self) -> None:
        """Kill all processes started here."""
        self._end_all()
        self._files.cleanup()

    def _end_all(self) -> None:
        for process in self.processes.values():
            _end(process)
        self.processes.clear()

    def _ray(self, ip: str, *options: str) -> None:
        cpus = self._cpus_of_head if "--head" in options else 1
        words = [
            *(str(_PROGRAMS / "ray"), "start", "--block", "--disable-usage-stats", *options),
            *(f"--node-ip-address={ip}", f"--num-cpus={cpus}", "--object-store-memory=80000000"),
            # With the default range, the worker ports of nodes on the same machine collide.
            *("--min-worker-port=0", "--max-worker-port=0"),
        ]
        self.log(ip).unlink(missing_ok=True)
        self.processes[ip] = self._spawn(ip, words)
        self._wait_for(ip)

    def _wait_for(self, ip: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while "Ray runtime started" not in self.log(ip).read_text(errors="replace"):
            ended = [name for name, node in self.processes.items() if node.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise NodesError(f"a node did not start; see {self.log((ended or [ip])[0])}")
            time.sleep(0.1)

    def _spawn(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**self._environment, **environment},
                start_new_session=True,
            )


def _end(node: subprocess.Popen[bytes]) -> None:
    """Kill its descendants, because Ray's workers have separate process groups, and its process
    group, because some processes are detached."""
    below = family(node.pid)
    try:
        os.killpg(node.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # The group has already ended.
    for child in below:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass  # It has already ended.
    node.wait()


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
