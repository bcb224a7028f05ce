"""The endpoint as deployed: Ray, and Serve's replicas behind HAProxy with the settings of
`cmcl.stack`."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from benchmarks.endpoint.messages import Array, features
from benchmarks.endpoint.stored import MODALITY, MODEL
from benchmarks.processes import family, title
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports, StackError

_READY_SECONDS = 120.0
_STOP_SECONDS = 20.0
_ANSWER_SECONDS = 10.0
_SERVER_LINE = re.compile(r"^\s*server (\S+) ([\d.]+):(\d+) check(?!.* backup)", re.MULTILINE)
_JSON = {"content-type": "application/json"}
_REPLICA = "ServeReplica:embeddings:Embedder"


class Probe:
    """Query one replica directly for its version, on a persistent connection."""

    def __init__(self, address: str, rows_BF: Array) -> None:
        self._client = httpx.Client(base_url=address, timeout=_ANSWER_SECONDS, trust_env=False)
        body = {"model": MODEL, "modality": MODALITY, "input": rows_BF.tolist()}
        self._body = json.dumps({**body, "encoding_format": "base64"}).encode()

    def version(self) -> int:
        """Return the replica's version, or 0 without a version or a response."""
        try:
            answer = self._client.post("/v1/embeddings", content=self._body, headers=_JSON)
        except httpx.HTTPError:
            return 0
        return int(answer.headers.get("x-model-version", 0))

    def close(self) -> None:
        """Hang up."""
        self._client.close()


class EndpointStack:
    """Replicas that serve at `address` from the store under `folder`."""

    def __init__(
        self,
        folder: Path,
        replicas: int = 1,
        environment: Mapping[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
        nodes: int = 1,
        driver: str = "benchmarks.endpoint.driver",
    ) -> None:
        """`settings`: values of `ServeSettings` that differ from the defaults. `nodes`: with two, each
        has CPUs for one replica. `driver`: the module that deploys."""
        self._module = driver
        self._replicas = replicas
        self._nodes = nodes
        self._settings = {
            "num_cpus": _cpus_of_head(replicas) if nodes > 1 else 1,
            **(settings or {}),
        }
        self.stack = LocalStack(
            folder, Ports.free(), ranks=replicas, extra_environment=dict(environment or {})
        )
        self._driver: subprocess.Popen[bytes] | None = None
        self._second: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Address of HAProxy."""
        return self.stack.embeddings_url

    @property
    def store_uri(self) -> str:
        return self.stack.store_uri

    def __enter__(self) -> Self:
        for name in ("logs", "store"):
            (self.stack.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            self.stack.start_ray()
            self.stack.wait_for_ray()
            if self._nodes > 1:
                self.start_second_node()
            args = {"store": self.store_uri, "replicas": self._replicas, **self._settings}
            self._driver = self.stack.start_driver(
                [
                    *(sys.executable, "-m", self._module),
                    *(json.dumps(args), str(self.stack.ports.embeddings)),
                ]
            )
            self._wait()
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

    def stop(self) -> None:
        """Stop all processes."""
        if self._driver is not None:
            self._driver.send_signal(signal.SIGTERM)
            try:
                self._driver.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._driver.kill()
                self._driver.wait()
            self._driver = None
        if self._second is not None:
            self.kill_second_node()
        self.stack.stop()

    def start_second_node(self) -> None:
        """Start a node with CPUs for one replica. It has the same address as the head, because
        replicas listen on loopback like HAProxy."""
        self._second = self.stack.start_driver(
            [
                *(str(Path(sys.executable).parent / "ray"), "start", "--block"),
                f"--address=127.0.0.1:{self.stack.ports.ray}",
                *("--node-ip-address=127.0.0.1", "--object-store-memory=80000000"),
                f"--num-cpus={_cpus_of_head(self._replicas)}",
                # With the default range, the worker ports of nodes on the same machine collide.
                *("--min-worker-port=0", "--max-worker-port=0"),
            ]
        )

    def kill_second_node(self) -> None:
        """Kill it with all its processes."""
        assert self._second is not None
        family = psutil.Process(self._second.pid).children(recursive=True)
        for process in [*family, self._second]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass  # It has already ended.
        self._second.wait()
        self._second = None

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of the replicas."""
        return self.find(_REPLICA)

    def find(self, words: str) -> list[psutil.Process]:
        """Return processes of this Ray whose title contains `words`."""
        roots = [self.stack.processes["ray"], *([self._second] if self._second else [])]
        return [each for root in roots for each in family(root.pid) if words in title(each)]

    def proxy(self) -> list[psutil.Process]:
        """Return HAProxy's processes, which are detached from their parent."""
        folder = str(self.stack.proxy_folder)
        return [each for each in psutil.process_iter() if folder in title(each)]

    def replica_addresses(self) -> dict[str, str]:
        """Return the direct address of each replica by name, from HAProxy's configuration."""
        configurations = [
            path.read_text() for path in self.stack.proxy_folder.rglob("haproxy*.cfg")
        ]
        found = [each for text in configurations for each in _SERVER_LINE.findall(text)]
        return {name: f"http://{host}:{port}" for name, host, port in found}

    def wait_for_version(self, version: int, width: int) -> None:
        """Wait until every replica uses the version. Raises StackError."""
        rows_BF = features(1, 1, width)[0]
        deadline = time.monotonic() + _READY_SECONDS
        for address in self.replica_addresses().values():
            probe = Probe(address, rows_BF)
            while probe.version() != version:
                if time.monotonic() > deadline:
                    raise StackError(f"version {version} is not served at {address}")
                time.sleep(0.02)

    def _wait(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._driver is None or self._driver.poll() is not None:
                break
            if _is_ready(self.address) and len(self.replica_addresses()) == self._replicas:
                return
            time.sleep(0.2)
        raise StackError(f"the endpoint did not start; see {self.stack.log('driver')}")


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False  # Not listening yet.


def _cpus_of_head(replicas: int) -> int:
    """Return the logical CPUs of the head, as `cmcl.stack` sets them."""
    return 2 * replicas + 4
