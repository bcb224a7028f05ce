"""HAProxy with the configuration that the installed Ray writes and `cmcl-haproxy` edits, on real sockets;
servers for it that are not Serve's; and a client that holds many connections, from its own address."""

import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from cmcl.haproxy import SERVING, places
from cmcl.stack_host import Ports
from tests.architecture.repository import ROOT

SECONDS = 60.0
BODY = b"the whole body"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
# HAProxy itself answers it.
PROBE = b"GET /-/routes HTTP/1.1\r\nhost: localhost\r\n\r\n"
# Address of the client that holds many connections.
ADDRESS = "127.0.0.2"
# Margin for other open files of this process.
_SPARE = 1024


@contextmanager
def replica(requests: list[bytes]) -> Iterator[int]:
    """The port of a server; the first request that arrives with its body gets no response."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client, suppress(ConnectionError):
                    request = b""
                    while not request.endswith((BODY, b"\r\n\r\n")):
                        if not (more := client.recv(1 << 16)):
                            break
                        request += more
                    is_check = request.startswith(b"GET /-/healthz ")
                    if not is_check:
                        requests.append(request)
                    if is_check or len(requests) > 1:
                        client.sendall(ANSWER)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(SECONDS)
            assert not thread.is_alive()


def write_rays(folder: Path, ports: Ports, replicas: tuple[int, ...], **different: Any) -> Path:
    """Write the configuration as Ray does with our settings."""
    # Takes seconds, and only these tests need it.
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    files = places(ports, folder)
    servers = [ServerConfig(f"replica-{each}", "127.0.0.1", each) for each in replicas]
    prefix = "RAY_SERVE_HAPROXY"
    ours: dict[str, Any] = {
        "bufsize": int(SERVING[f"{prefix}_TUNE_BUFSIZE"]),
        "timeout_client_s": int(SERVING[f"{prefix}_TIMEOUT_CLIENT_S"]),
        "timeout_server_s": int(SERVING[f"{prefix}_TIMEOUT_SERVER_S"]),
        "retry_on": SERVING[f"{prefix}_RETRY_ON"],
        "http_options": HTTPOptions(host="127.0.0.1", port=ports.embeddings),
        "is_head": True,
        "metrics_port": ports.proxy_metrics,
        "stats_port": ports.proxy_stats,
        "socket_path": files[f"{prefix}_SOCKET_PATH"],
        "metrics_socket_path": files[f"{prefix}_METRICS_SOCKET_PATH"],
        "server_state_base": files[f"{prefix}_SERVER_STATE_BASE"],
        "server_state_file": files[f"{prefix}_SERVER_STATE_FILE"],
    }
    path = Path(files[f"{prefix}_CONFIG_FILE_LOC"])
    api = HAProxyApi(HAProxyConfig(**{**ours, **different}), config_file_path=str(path))
    backend = BackendConfig("embeddings", "/", app_name="embeddings", servers=servers)
    api.set_backend_configs({"embeddings": backend})
    api._generate_config_file_internal()
    return path


@dataclass(frozen=True)
class Proxy:
    """HAProxy as started by `cmcl-haproxy`."""

    process: psutil.Process
    port: int
    folder: Path

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection from one of this machine's own addresses."""
        return socket.create_connection(
            ("127.0.0.1", self.port), timeout=SECONDS, source_address=(source, 0)
        )

    def answers(self, source: str = "127.0.0.1", seconds: float = 5.0) -> bool:
        """Whether a request from that address is answered in time."""
        # One that is refused may be reset before `connect` returns.
        with suppress(OSError), self.connect(source) as client:
            client.settimeout(seconds)
            client.sendall(PROBE)
            return client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        return False

    def accepted(self) -> int:
        """Connections of clients that are open."""
        found = self.process.net_connections(kind="tcp")
        return sum(
            each.laddr.port == self.port and each.status == psutil.CONN_ESTABLISHED
            for each in found
        )


def launch(path: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start HAProxy as Ray does."""
    command = [
        sys.executable,
        "-c",
        "from cmcl.haproxy import main; main()",
        "-db",
        "-f",
        str(path),
    ]
    return subprocess.Popen(
        command, env={**environment}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


@contextmanager
def proxy(*replicas: int, settings: Mapping[str, str], **different: Any) -> Iterator[Proxy]:
    # Paths of sockets have a hundred characters at most.
    with TemporaryDirectory(prefix="cmcl-") as name:
        ports, folder = Ports.free(), Path(name) / "proxy"
        path = write_rays(folder, ports, replicas, **different)
        process = launch(path, environment(settings))
        try:
            running = Proxy(psutil.Process(process.pid), ports.embeddings, folder)
            deadline = time.monotonic() + SECONDS
            while not listens(ports.embeddings):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield running
        finally:
            process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "RAY_SERVE_HAPROXY_BINARY_PATH": "/itself", **settings}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def crowd(port: int, size: int, sent: bytes = b"") -> Iterator[None]:
    """Open connections to a local port, which send the given bytes and wait until the block ends.

    Connections that the server closes stay closed. The limit of open files is raised for that time.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = size + _SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        with ExitStack() as clients:
            for _ in range(size):
                # One that is refused may be reset before `connect` returns.
                with suppress(ConnectionError):
                    client = socket.create_connection(
                        ("127.0.0.1", port), timeout=10, source_address=(ADDRESS, 0)
                    )
                    clients.enter_context(client)
                    client.sendall(sent)
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
