"""The proxy before the control plane, on real sockets: what a client may cost before its key is known."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from cmcl.haproxy import CONNECTIONS_PER_SOURCE, ProxyError, find_haproxy
from cmcl.service_proxy import CONFIGURATION, variables
from tests.fakes.haproxy import ADDRESS, crowd
from tests.fakes.segments import read
from tests.fakes.service_proxy import Edge, edge
from tests.fakes.waiting import until

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
WHERE = {"CMCL_PROXY_LISTEN": "127.0.0.1:8000", "CMCL_PROXY_SERVICE": "127.0.0.1:8001"}
MIB = 1 << 20
# More than all buffers on the way hold.
LARGE = 64 * MIB


class App:
    """Answers what it was asked, and notes heads and bodies as they arrive."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.bodies: list[int] = []
        self.gone = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.heads.append(scope["path"])
        if scope["path"] in ("/stream", "/wait", "/metrics"):
            await self._stream(scope, receive, send)
            return
        if scope["path"] == "/large":
            await StreamingResponse(self._large())(scope, receive, send)
            return
        size, is_last = 0, False
        while not is_last:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            size += len(message["body"])
            is_last = not message["more_body"]
        self.bodies.append(size)
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        answer = {"client": scope["client"][0], "scheme": scope["scheme"], "headers": headers}
        await JSONResponse(answer)(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()

    async def _large(self):  # type: ignore[no-untyped-def]
        for _ in range(LARGE // MIB):
            yield b"a" * MIB


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def running(app: App) -> Iterator[Edge]:
    with edge(app) as made:
        yield made


def get(running: Edge, path: str = "/", **options: object) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{running.port}{path}", timeout=30, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("trusted", ["", "10.0.3.0/24, fd00::/8"])
def test_haproxy_accepts_the_configuration_without_a_warning(trusted: str) -> None:
    environment = {**os.environ, **variables({**WHERE, "CMCL_PROXY_TRUSTED": trusted})}
    command = [find_haproxy(), "-c", "-f", str(CONFIGURATION)]
    checked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CMCL_PROXY_LISTEN": ""}, "CMCL_PROXY_LISTEN is missing"),
        ({"CMCL_PROXY_TRUSTED": "all"}, "CMCL_PROXY_TRUSTED: 'all' does not appear"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ProxyError, match=message):
        variables({**WHERE, **changes})


def test_connections_of_one_source_are_limited_and_another_one_is_answered(running: Edge) -> None:
    with crowd(running.port, CONNECTIONS_PER_SOURCE + 100, GET):
        until(lambda: running.connections(running.port) == CONNECTIONS_PER_SOURCE, 10)
        assert get(running).status_code == 200


@pytest.mark.parametrize(("path", "most"), [("/wait", 128), ("/metrics", 8)])
def test_requests_of_one_source_in_progress_are_limited(
    app: App, running: Edge, path: str, most: int
) -> None:
    head = GET.replace(b"/", path.encode(), 1) + b"\r\n"
    with crowd(running.port, most, head):
        until(lambda: len(app.heads) == most, 10)
        with running.connect(ADDRESS) as more:
            begin = time.monotonic()
            more.sendall(head)
            assert more.recv(1 << 16).startswith(b"HTTP/1.1 429 ")
            # Who asks again at once costs little.
            assert time.monotonic() - begin > 0.9
        with running.connect(ADDRESS) as probe:
            probe.sendall(GET.replace(b"/", b"/healthz", 1) + b"\r\n")
            assert probe.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert get(running).status_code == 200
        assert len(app.heads) == most + 2


@pytest.mark.parametrize(
    "start", [GET, GET + b"x-filler: ", b"GET /"], ids=["headers", "one value", "an address"]
)
def test_a_head_without_end_is_cut_off(running: Edge, start: bytes) -> None:
    piece = b"x-a: " + b"a" * 1000 + b"\r\n" if start == GET else b"a" * 4096
    sent = 0
    with running.connect() as client:
        client.sendall(start)
        with suppress(ConnectionError):
            while sent < 64 * MIB:
                sent += client.send(piece)
    assert sent < 16 * MIB


# Timeouts of the configuration, and the seconds that they have in the test.
QUICKER = {
    "timeout http-request 10s": ("timeout http-request 2s", 2),
    "wait-for-body time 10s": ("wait-for-body time 3s", 3),
    "timeout client 20s": ("timeout client 5s", 5),
}


def test_what_stalls_is_closed_in_time(app: App, tmp_path: Path) -> None:
    """All at once, since each waits for a timeout: (what was sent, the status of the answer, seconds)."""
    text = CONFIGURATION.read_text()
    for line, (quicker, _) in QUICKER.items():
        assert text.count(line) == 1
        text = text.replace(line, quicker)
    (tmp_path / "quicker.cfg").write_text(text)
    head, body, idle = (seconds for _, seconds in QUICKER.values())
    stalling = {
        "nothing": (b"", b"", head),
        "a head": (GET, b"408", head),
        "a small body": (POST % 100 + b"a", b"408", body),
        "a large body": ((POST % MIB).replace(b"/", b"/body", 1) + b"a", b"400", idle),
        "its answer unread": (GET.replace(b"/", b"/large", 1) + b"\r\n", b"200", idle),
    }
    begin = time.monotonic()
    with ExitStack() as stack:
        running = stack.enter_context(edge(app, configuration=tmp_path / "quicker.cfg"))
        clients = {name: stack.enter_context(running.connect()) for name in stalling}
        for name, client in clients.items():
            client.sendall(stalling[name][0])
        until(lambda: sorted(app.heads) == ["/body", "/large"], 5)
        for name, (_, status, seconds) in stalling.items():
            client = clients[name]
            if name == "its answer unread":
                until(lambda: running.connections(running.behind) == 0, 30)
            answer = read(client)
            assert answer[9:12] == status, name
            if "body" in name:
                problem = json.loads(answer.partition(b"\r\n\r\n")[2])
                assert problem["status"] == int(status)
            assert seconds - 1 < time.monotonic() - begin < seconds + 5, name
    assert app.gone.wait(10)
    assert sorted(app.heads) == ["/body", "/large"]
    assert app.bodies == []


def test_a_share_of_unfinished_requests_takes_less_than_128_mib(running: Edge) -> None:
    with crowd(running.port, CONNECTIONS_PER_SOURCE, GET + b"x: " + b"a" * (62 << 10)):
        assert get(running, headers={"x": "b" * 1000}).status_code == 200
        assert running.process.memory_info().rss < 128 * MIB


def test_a_small_body_reaches_the_service_when_it_is_complete(app: App, running: Edge) -> None:
    with running.connect() as slow:
        slow.sendall(POST % 2 + b"a")
        time.sleep(0.5)
        assert app.heads == []
        slow.sendall(b"a")
        until(lambda: app.bodies == [2], 10)


def test_a_body_that_is_too_large_is_refused_unless_it_is_a_file(app: App, running: Edge) -> None:
    with running.connect() as client:
        client.sendall(POST % (64 * MIB + 1))
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    assert app.heads == []
    file = "/v1/uploads/up-0123456789ab/file"
    with running.connect() as client:
        client.sendall((POST % (64 * MIB + 1)).replace(b"POST /", b"PUT " + file.encode()))
        until(lambda: app.heads == [file], 10)


def test_chunks_of_one_byte_arrive_as_one_body(app: App, running: Edge) -> None:
    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with running.connect() as client:
        client.sendall(head + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    assert app.bodies == [100_000]


def test_the_end_of_a_streams_client_reaches_the_service(app: App, running: Edge) -> None:
    with running.connect() as client:
        client.sendall(GET.replace(b"/", b"/stream", 1) + b"\r\n")
        while b"event" not in client.recv(1 << 16):
            pass
    assert app.gone.wait(5)


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ("", {"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "https"}, "127.0.0.1"),
        ("", {}, "127.0.0.1"),
        ("127.0.0.1", {}, "127.0.0.1"),
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.1"}, "192.0.2.1"),
        ("127.0.0.1", {"x-forwarded-for": "10.9.9.9, 192.0.2.1"}, "192.0.2.1"),
        ("127.0.0.1,10.0.3.7", {"x-forwarded-for": "192.0.2.1, 10.0.3.7"}, "192.0.2.1"),
        (
            "127.0.0.1",
            {"x-forwarded-for": "2001:db8::1", "x-forwarded-proto": "https"},
            "2001:db8::1",
        ),
    ],
)
def test_the_service_sees_the_client_and_not_what_it_says_of_itself(
    app: App, trusted: str, forwarded: dict[str, str], client: str
) -> None:
    with edge(app, trusted) as running, httpx.Client(timeout=30) as session:
        url = f"http://127.0.0.1:{running.port}/"
        answer = session.get(url, headers=forwarded).json()
        assert answer["client"] == client
        assert answer["scheme"] == (
            forwarded.get("x-forwarded-proto", "http") if trusted else "http"
        )
        # Nothing of it is left for the next request of the connection.
        assert session.get(url).json()["client"] == "127.0.0.1"


def test_a_trusted_proxy_may_have_all_connections(app: App) -> None:
    more = CONNECTIONS_PER_SOURCE + 100
    with edge(app, f"10.0.3.0/24,{ADDRESS}") as running, crowd(running.port, more):
        until(lambda: running.connections(running.port) == more, 10)


def test_while_the_service_is_away_the_answer_says_so(running: Edge) -> None:
    running.stop_service()
    answer = get(running)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["type"] == "urn:cmcl:problem:unavailable"
