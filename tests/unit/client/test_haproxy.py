"""HAProxy with the configuration that the installed Ray writes and `cmcl-haproxy` edits, on real sockets,
in front of two servers that are not Serve's."""

import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import pytest

from cmcl.haproxy import (
    ANSWER_SECONDS,
    BODY_SECONDS,
    BUFFER_KIB,
    CONNECTIONS_PER_SOURCE,
    HEAD_SECONDS,
    PROGRAM,
    SERVING,
    ProxyError,
    bounded,
)
from cmcl.stack_host import Ports
from tests.architecture.repository import ROOT
from tests.fakes.haproxy import (
    ADDRESS,
    BODY,
    PROBE,
    SECONDS,
    crowd,
    environment,
    launch,
    proxy,
    replica,
    write_rays,
)
from tests.fakes.segments import read
from tests.fakes.waiting import until
from workers.serve.api.context import LONGEST_MS
from workers.serve.settings import ServeSettings

# Ray's own models warn while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

POST = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
MORE = CONNECTIONS_PER_SOURCE + 100
TRUSTED = "CMCL_ENDPOINT_TRUSTED_PROXIES"


@pytest.fixture(scope="module")
def rays() -> str:
    """Return a configuration as Ray writes it."""
    with TemporaryDirectory(prefix="cmcl-") as folder:
        return write_rays(Path(folder), Ports.free(), (30_000,)).read_text()


def test_both_attempts_at_one_request_have_one_id() -> None:
    requests: list[bytes] = []
    with (
        replica(requests) as one,
        replica(requests) as other,
        proxy(one, other, settings={}) as running,
        httpx.Client(base_url=f"http://127.0.0.1:{running.port}", timeout=SECONDS) as client,
    ):
        answer = client.post("/", content=BODY)
        assert (answer.status_code, len(requests)) == (200, 2)
        assert requests[0] == requests[1]
        assert b"\r\nx-unique-id: " in requests[0]
        client.post("/", content=BODY)
    assert requests[2] != requests[1]


def test_connections_of_one_source_are_limited() -> None:
    with proxy(settings={}, maxconn=2048) as running, crowd(running.port, MORE):
        until(lambda: running.accepted() == CONNECTIONS_PER_SOURCE, 10)
        assert not running.answers(ADDRESS)
        assert running.answers("127.0.0.3")


def test_a_trusted_proxy_may_have_all_connections() -> None:
    settings = {TRUSTED: "10.0.3.0/24, 127.0.0.2,fd00::/8"}
    with proxy(settings=settings, maxconn=2048) as running, crowd(running.port, MORE):
        until(lambda: running.accepted() == MORE, 10)


@pytest.mark.parametrize("sent", [PROBE[:10], b"POST / HTTP/1.1\r\nhost: localhost\r\nx: "])
def test_a_share_of_unfinished_heads_that_fill_their_buffers_takes_less_than_128_mib(
    sent: bytes,
) -> None:
    head = sent + b"a" * (BUFFER_KIB - 2 << 10)
    with proxy(settings={}) as running, crowd(running.port, CONNECTIONS_PER_SOURCE, head):
        until(lambda: running.accepted() > CONNECTIONS_PER_SOURCE - 50, 10)
        assert running.answers()
        assert running.process.memory_info().rss < 128 << 20


def test_a_stalled_body_is_dropped_and_does_not_reach_a_replica() -> None:
    requests: list[bytes] = []
    with (
        replica(requests) as port,
        proxy(port, settings={}, timeout_client_s=2) as running,
        running.connect() as client,
    ):
        client.sendall(POST % 100 + b"a")
        assert read(client).startswith(b"HTTP/1.1 408 ")
    assert requests == []


def test_a_body_that_cannot_be_resent_is_forwarded_at_once() -> None:
    """The replica authorises a large body by its head."""
    requests: list[bytes] = []
    with (
        replica(requests) as port,
        proxy(port, settings={}) as running,
        running.connect() as client,
    ):
        client.sendall(POST % (BUFFER_KIB << 10))
        # One connection at a time, and HAProxy looks at the replica between.
        until(lambda: bool(requests), HEAD_SECONDS / 2)


def test_one_connection_is_one_request_at_a_time() -> None:
    """One HTTP/2 connection would carry a hundred requests with buffers."""
    with proxy(settings={}) as running, running.connect() as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        assert read(client).startswith(b"HTTP/1.1 4")


def test_haproxys_sockets_are_private_to_user_and_machine() -> None:
    with proxy(settings={}) as running:
        socket_mode = (running.folder / "a").stat().st_mode & 0o777
        assert (oct(socket_mode), oct(running.folder.stat().st_mode & 0o777)) == ("0o600", "0o700")
        listening = [
            each.laddr
            for each in running.process.net_connections(kind="tcp")
            if each.status == psutil.CONN_LISTEN
        ]
        assert len({each.port for each in listening}) == 3
        assert {each.ip for each in listening} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("/a mode 666 level", "/a mode 660 level"),
        ("    maxconn 4096\n", ""),
        ("    maxconn 4096\n", "    maxconn 4096\n    maxconn 4096\n"),
        (f"    tune.bufsize {BUFFER_KIB << 10}\n", ""),
        ("timeout client 30s", "timeout client 30000"),
        ("frontend http_frontend\n", "frontend http\n"),
        ("  bind *:", "  bind :::"),
        ("listen stats\n", "listen stats\n  bind *:1\n"),
        ("listen stats\n", "frontend other\n  bind *:1\nlisten stats\n"),
        ("    stats timeout 30s\n", "    stats socket /tmp/another mode 666 level admin\n"),
    ],
)
def test_an_unknown_configuration_of_ray_is_rejected(rays: str, line: str, instead: str) -> None:
    bounded(rays)
    assert line in rays
    with pytest.raises(ProxyError, match="release of Ray"):
        bounded(rays.replace(line, instead, 1))


def test_one_address_never_has_more_connections_than_haproxy(rays: str) -> None:
    assert "maxconn 4096" in rays
    # What HAProxy does with it: test_service_proxy.py.
    assert f"timeout http-request {HEAD_SECONDS}s\n" in bounded(rays)
    with pytest.raises(ProxyError, match="MAXCONN: 512 is less than the 1024 connections"):
        bounded(rays.replace("maxconn 4096", "maxconn 512"))


def test_a_listener_without_limits_is_rejected() -> None:
    from ray.serve.config import gRPCOptions

    options = gRPCOptions(port=1, grpc_servicer_functions=["workers.serve.app.deploy"])
    with TemporaryDirectory(prefix="cmcl-") as folder:
        path = write_rays(Path(folder), Ports.free(), (30_000,), grpc_options=options)
        with pytest.raises(ProxyError, match="proto h2' has no bounds"):
            bounded(path.read_text())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({TRUSTED: "ingress"}, f"{TRUSTED}: 'ingress' does not appear to be an IPv4 or IPv6"),
        ({TRUSTED: "10.0.0.1/8"}, f"{TRUSTED}: 10.0.0.1/8 has host bits set"),
    ],
)
def test_an_invalid_setting_ends_the_start_with_its_name(
    tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    path = write_rays(tmp_path, Ports.free(), (30_000,))
    written = path.read_text()
    process = launch(path, environment(settings))
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert words in error
    assert error.count("\n") == 1
    assert path.read_text() == written


def test_the_program_that_ray_starts_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[PROGRAM] == "cmcl.haproxy:main"
    assert SERVING["RAY_SERVE_HAPROXY_BINARY_PATH"] == f"/opt/cmcl/bin/{PROGRAM}"


def test_the_proxy_waits_for_a_body_as_long_as_the_endpoint() -> None:
    assert ServeSettings(store="file:///a").body_seconds == BODY_SECONDS


def test_the_proxy_waits_for_an_answer_longer_than_a_request_may_take() -> None:
    assert ANSWER_SECONDS > LONGEST_MS / 1000 + BODY_SECONDS


def test_one_source_may_have_as_many_connections_as_a_replica_takes_requests() -> None:
    assert ServeSettings(store="file:///a").max_requests_in_flight == CONNECTIONS_PER_SOURCE
