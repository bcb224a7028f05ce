"""The proxy before the control plane, on real sockets, in front of an app in this process."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from starlette.types import ASGIApp

from cmcl.haproxy import find_haproxy
from cmcl.service_proxy import CONFIGURATION, variables
from cmcl.stack_host import HOST, Ports
from service.app import make_server
from service.core.settings import Settings

SECONDS = 60.0


@dataclass(frozen=True)
class Edge:
    """The proxy, and the port of the app behind it."""

    process: psutil.Process
    port: int
    behind: int
    stop_service: Callable[[], None]

    def connect(self, source: str = HOST) -> socket.socket:
        """A connection from one of this machine's own addresses."""
        return socket.create_connection(
            (HOST, self.port), timeout=SECONDS, source_address=(source, 0)
        )

    def connections(self, port: int) -> int:
        """Established connections of the proxy with a local or remote port."""
        return sum(
            each.status == psutil.CONN_ESTABLISHED
            and port in (each.laddr.port, each.raddr.port if each.raddr else 0)
            for each in self.process.net_connections(kind="tcp")
        )


@contextmanager
def edge(app: ASGIApp, trusted: str = "", configuration: Path = CONFIGURATION) -> Iterator[Edge]:
    """Serve an app behind the proxy until the block ends. `trusted`: networks of proxies before it."""
    ports = Ports.free()
    server = make_server(app, Settings(auth="off", port=ports.behind_proxy))
    server.config.lifespan = "off"
    thread = threading.Thread(target=server.run, name="behind the proxy")
    thread.start()

    def stop_service() -> None:
        server.force_exit = server.should_exit = True
        thread.join()

    settings = {
        "CMCL_PROXY_LISTEN": f"{HOST}:{ports.service}",
        "CMCL_PROXY_SERVICE": f"{HOST}:{ports.behind_proxy}",
        "CMCL_PROXY_TRUSTED": trusted,
    }
    command = [find_haproxy(), "-f", str(configuration)]
    process = subprocess.Popen(command, env={**os.environ, **variables(settings)})
    try:
        deadline = time.monotonic() + SECONDS
        while not (server.started and _listens(ports.service)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Edge(psutil.Process(process.pid), ports.service, ports.behind_proxy, stop_service)
    finally:
        process.kill()
        process.wait()
        stop_service()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
