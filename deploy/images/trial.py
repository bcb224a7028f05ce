"""Test of both images: runs the whole system in them, and smoke.py against it.

As in the chart, processes run as an unprivileged user and can write only to /tmp, their home, store and
database. Training uses two ranks.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cmcl.haproxy import SERVING
from cmcl.stack_host import HOST, Ports
from deploy.images.buildah import Buildah, Container

_TOKEN = "for-this-trial-alone"  # noqa: S105 - of a cluster on loopback, for a minute
_STORE = "/var/lib/cmcl/store"
_SMOKE = Path(__file__).parent.parent / "smoke"
_SECONDS = 300.0
_RANKS = 2


class TrialFailed(Exception):
    """A part did not start, or the check failed. The message has the end of its log."""


@dataclass(frozen=True)
class Place:
    """A container with its writable folders, its log folder, and all parts of the test."""

    buildah: Buildah
    container: Container
    volumes: Mapping[Path, str]
    logs: Path
    parts: list["Part"]

    @classmethod
    def make(
        cls, buildah: Buildah, container: Container, name: str, folder: Path, parts: list["Part"]
    ) -> "Place":
        """`folder` is shared by all containers; its `store` is their volume."""
        uid, _, gid = container.user.partition(":")
        own = folder / name
        volumes = {own / "tmp": "/tmp", own / "home": "/home/cmcl", folder / "store": _STORE}  # noqa: S108
        for path in volumes:
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, int(uid), int(gid))
        return cls(buildah, container, {**volumes, _SMOKE: "/smoke:ro"}, folder, parts)

    def start(self, name: str, command: list[str], environment: Mapping[str, str]) -> "Part":
        """Start a process that runs until the end of the test."""
        log = self.logs / f"{name}.log"
        started = self.buildah.start(self.container, command, environment, self.volumes, log)
        part = Part(name, started, log, self.parts)
        self.parts.append(part)
        return part

    def written(self) -> Iterator[Path]:
        """Return files written outside the volumes, which are those not owned by root."""
        uid = int(self.container.user.partition(":")[0])
        for path in self.container.root.rglob("*"):
            inside = path.relative_to(self.container.root)
            if path.lstat().st_uid == uid and not inside.is_relative_to("home"):
                yield inside


@dataclass(frozen=True)
class Part:
    """A process of the test, and the processes that it depends on."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    parts: Sequence["Part"]

    def wait_for(self, url: str) -> float:
        """Wait for status 200, and return the seconds. Raises TrialFailed."""
        started = time.monotonic()
        headers = {"Authorization": f"Bearer {_TOKEN}"}
        while time.monotonic() < started + _SECONDS:
            for part in self.parts:
                if part.process.poll() is not None:
                    raise TrialFailed(
                        f"{part.name} ended while {self.name} was starting:\n{part.log_tail()}"
                    )
            try:
                if httpx.get(url, timeout=2, headers=headers).status_code == httpx.codes.OK:
                    return round(time.monotonic() - started, 1)
            except httpx.HTTPError:
                pass  # Not listening yet: that is what we wait for.
            time.sleep(0.2)
        raise TrialFailed(f"{self.name} was not ready in {_SECONDS:g} s:\n{self.log_tail()}")

    def finish(self) -> str:
        """Wait for a successful end, and return the last line. Raises TrialFailed."""
        code = self.process.wait(_SECONDS)
        if code != 0:
            raise TrialFailed(f"{self.name} ended with {code}:\n{self.log_tail()}")
        return self.log.read_text().splitlines()[-1]

    def log_tail(self) -> str:
        """Return the end of the log, which is deleted with the test."""
        return self.log.read_text()[-2000:].strip()


def try_service(buildah: Buildah, image: str, folder: Path) -> dict[str, Any]:
    """Test the control plane alone, as its user, with SQLite and a folder."""
    ports = Ports.free()
    with buildah.container(image) as container:
        place = Place.make(buildah, container, "service", folder, [])
        ready = _start_service(place, image, ports, ranks=1)
        return {"service_seconds": ready, "written_elsewhere": [*map(str, place.written())]}


def try_both(buildah: Buildah, service: str, worker: str, folder: Path) -> dict[str, Any]:
    """Test the whole system on two ranks. Return smoke.py's results and startup times."""
    ports = Ports.free()
    with ExitStack() as stack:
        nodes = stack.enter_context(buildah.container(worker))
        plane = stack.enter_context(buildah.container(service))
        parts: list[Part] = []
        ray = Place.make(buildah, nodes, "worker", folder, parts)
        control = Place.make(buildah, plane, "service", folder, parts)
        answers: dict[str, Any] = {"ray_seconds": _start_ray(ray, ports)}
        answers["service_seconds"] = _start_service(control, service, ports, ranks=_RANKS)
        answers["embeddings_seconds"] = _start_embeddings(ray, ports)
        answers["smoke"] = _smoke(ray, ports)
        answers["written_elsewhere"] = [*map(str, ray.written()), *map(str, control.written())]
    return answers


def _start_ray(place: Place, ports: Ports) -> float:
    command = [
        *("ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=8"),
        *(f"--node-ip-address={HOST}", f"--port={ports.ray}", "--include-dashboard=true"),
        *(f"--dashboard-port={ports.dashboard}", "--object-store-memory=200000000"),
        # Jobs pass through it. 0 selects a free port, because another Ray may use the default one.
        "--dashboard-agent-listen-port=0",
    ]
    part = place.start("ray", command, _environment(ports))
    return part.wait_for(f"http://{HOST}:{ports.dashboard}/api/version")


def _start_service(place: Place, image: str, ports: Ports, ranks: int) -> float:
    settings = {
        "CMCL_DATABASE_URL": "sqlite:////tmp/cmcl.db",
        "CMCL_STORE_URI": f"file://{_STORE}",
        "CMCL_RAY_ADDRESS": f"http://{HOST}:{ports.dashboard}",
        "CMCL_RANKS": str(ranks),
        "CMCL_HOST": HOST,
        "CMCL_PORT": str(ports.service),
        "CMCL_AUTH": "off",
    }
    entrypoint = place.buildah.inspect(image)["config"]["Entrypoint"]
    part = place.start("service", entrypoint, {**_environment(ports), **settings})
    return part.wait_for(f"http://{HOST}:{ports.service}/readyz")


def _start_embeddings(place: Place, ports: Ports) -> float:
    command = [
        *("python", "-m", "workers.serve", "--store", f"file://{_STORE}"),
        *("--host", HOST, "--port", str(ports.embeddings)),
    ]
    address = {"RAY_ADDRESS": f"{HOST}:{ports.ray}"}
    part = place.start("embeddings", command, {**_environment(ports), **address})
    return part.wait_for(f"http://{HOST}:{ports.embeddings}/readyz")


def _smoke(place: Place, ports: Ports) -> dict[str, Any]:
    command = [
        *("python", "/smoke/smoke.py", "--stream=/opt/cmcl/examples/stream"),
        f"--service=http://{HOST}:{ports.service}",
        f"--embeddings=http://{HOST}:{ports.embeddings}",
    ]
    found: dict[str, Any] = json.loads(place.start("smoke", command, {}).finish())
    if found["ranks"] != _RANKS:
        raise TrialFailed(f"{found['ranks']} rank(s) learned the dataset, not {_RANKS}")
    return found


def _environment(ports: Ports) -> dict[str, str]:
    return {
        **SERVING,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        "RAY_START_HOOK": "cmcl.stack_host.without_client_server",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
        # Other stacks on this machine may use the default ports.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.proxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.proxy_stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.proxy_fallback),
    }
