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
        self, folder: Path, replicas: int = 1, settings: Mapping[str, object] | None = None
    ) -> None:
        """`settings`: values of `ServeSettings` that differ from the defaults."""
        self._replicas, self._settings = replicas, settings or {}
        self.stack = LocalStack(folder, Ports.free(), ranks=replicas)
        self._driver: subprocess.Popen[bytes] | None = None

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
            args = {"store": self.store_uri, "replicas": self._replicas, "num_cpus": 1}
            self._driver = self.stack.start_driver(
                [
                    *(sys.executable, "-m", "benchmarks.endpoint.driver"),
                    *(json.dumps({**args, **self._settings}), str(self.stack.ports.embeddings)),
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
        self.stack.stop()

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of the replicas."""
        ray = self.stack.processes["ray"]
        return [each for each in family(ray.pid) if _REPLICA in title(each)]

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
