"""Hostile clients on real sockets: what a head, an idle connection and an unread answer may cost."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.connections import Connections
from service.api.server import Http, Server, make_server
from service.settings import Settings

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n"
# More than the buffers of both kernels hold.
LARGE = Response(b"x" * (32 << 20))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Small at one path, large at another."""
    response = LARGE if scope["path"] == "/large" else PlainTextResponse("ok")
    await response(scope, receive, send)


class Edge:
    """A server on a port of this machine."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address: tuple[str, int] = server.servers[0].sockets[0].getsockname()

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection from one of this machine's own addresses."""
        return socket.create_connection(self.address, timeout=10, source_address=(source, 0))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Its event loop does nothing meanwhile; the kernel takes what clients send. Needs a connection."""
        is_stopped, go_on = threading.Event(), threading.Event()

        def stop() -> None:
            is_stopped.set()
            go_on.wait(60)

        loop = next(iter(self.server.server_state.connections)).loop
        loop.call_soon_threadsafe(stop)
        assert is_stopped.wait(60)
        try:
            yield
        finally:
            go_on.set()

    def open_after(self, seconds: float) -> int:
        """Connections that the server has, that much later."""
        time.sleep(seconds)
        return len(self.server.server_state.connections)


@contextmanager
def _edge(
    app: ASGIApp = app, patience_seconds: float = 30.0, trusted: str = "10.9.9.9", most: int = 64
) -> Iterator[Edge]:
    settings = Settings(auth="off", port=0, trusted_proxies=(trusted,), max_connections=most)
    server = make_server(app, settings, patience_seconds=patience_seconds)
    thread = threading.Thread(target=server.run, name="edge")
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Edge(server)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def edge() -> Iterator[Edge]:
    """With the limits that the service has, but for the number of connections."""
    with _edge() as running:
        yield running


def _read(client: socket.socket) -> bytes:
    """All until the server closes."""
    received = bytearray()
    with suppress(ConnectionError):
        while piece := client.recv(1 << 16):
            received += piece
    return bytes(received)


def _send_without_end(client: socket.socket, piece: bytes, most: int = 64 << 20) -> int:
    """How many bytes were taken before the connection was closed."""
    sent = 0
    with suppress(ConnectionError):
        while sent < most:
            sent += client.send(piece)
    return sent


def _is_answered(client: socket.socket) -> bool:
    with suppress(ConnectionError):
        client.sendall(GET + b"\r\n")
        return client.recv(1 << 16).startswith(b"HTTP/1.1 200")
    return False


def _read_ok(client: socket.socket) -> None:
    """One small answer, on a connection that stays open."""
    received = b""
    while not received.endswith(b"\r\n\r\nok"):
        piece = client.recv(1 << 16)
        assert piece, received
        received += piece


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (GET, b"x-filler: " + b"a" * 1000 + b"\r\n"),
        (GET + b"x-filler: ", b"a" * 4096),
        (b"GET /", b"a" * 4096),
    ],
    ids=["headers without end", "one value without end", "an address without end"],
)
def test_a_head_without_end_is_cut_off(edge: Edge, start: bytes, piece: bytes) -> None:
    with edge.connect() as client:
        client.sendall(start)
        # What the kernels of both ends hold, which the server has not read.
        assert _send_without_end(client, piece) < 16 << 20


def test_a_head_that_is_too_large_is_answered_431(edge: Edge) -> None:
    with edge.connect() as client:
        client.sendall(GET + b"x-filler: " + b"a" * (32 << 10))
        assert _read(client).startswith(b"HTTP/1.1 431 ")


def test_a_head_just_under_the_bound_is_answered(edge: Edge) -> None:
    filler = b"a" * ((32 << 10) - len(GET) - len(b"x-filler: \r\n\r\n") - 1)
    with edge.connect() as client:
        client.sendall(GET + b"x-filler: " + filler + b"\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_each_head_of_a_connection_has_the_whole_bound(edge: Edge) -> None:
    with edge.connect() as client:
        for _ in range(4):
            client.sendall(GET + b"x-filler: " + b"a" * (20 << 10) + b"\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_body_is_no_part_of_the_head(edge: Edge) -> None:
    head = (
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\nconnection: close\r\n\r\n"
    )
    with edge.connect() as client:
        client.sendall(head + b"a" * 200_000)
        assert _read(client).startswith(b"HTTP/1.1 200 ")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """How many bytes the body had, once all of it has come."""
    total, is_last = 0, False
    while not is_last:
        message = await receive()
        assert message["type"] == "http.request", message
        total += len(message["body"])
        is_last = not message["more_body"]
    await PlainTextResponse(str(total))(scope, receive, send)


@pytest.mark.parametrize("pieces", [(32 << 10,), (64 << 10, 200_000), (1, 40_000, 40_000, 3)])
def test_a_body_of_any_size_arrives_whole_in_each_request_of_a_connection(
    pieces: tuple[int, ...],
) -> None:
    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % sum(pieces)
    with _edge(echo) as running, running.connect() as client:
        for _ in range(3):
            client.sendall(head)
            for piece in pieces:
                # So that the server reads each by itself.
                time.sleep(0.05)
                client.sendall(b"a" * piece)
            answer = client.recv(1 << 16)
            while not answer.endswith(b"%d" % sum(pieces)) and (more := client.recv(1 << 16)):
                answer += more
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\n%d" % sum(pieces))


def test_chunks_of_one_byte_are_parsed_in_steps_that_others_get_between() -> None:
    sizes: list[int] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        is_last = False
        while not is_last:
            message = await receive()
            sizes.append(len(message["body"]))
            is_last = not message["more_body"]
        await PlainTextResponse("ok")(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with _edge(note) as edge, edge.connect() as client:
        client.sendall(head + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    assert sum(sizes) == 100_000
    # A step is about 700 chunks; the request may get its turn after every other one.
    assert max(sizes) <= 2048


def test_little_of_a_body_lies_in_memory_while_its_request_waits() -> None:
    is_over = threading.Event()

    async def unread(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            while scope["method"] == "POST" and not is_over.is_set():
                await asyncio.sleep(0.01)
            await PlainTextResponse("ok")(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n"
    with _edge(unread) as edge, ExitStack() as stack:
        clients = [stack.enter_context(edge.connect()) for _ in range(8)]
        for client in clients:
            client.sendall(GET + b"\r\n")
            _read_ok(client)
            client.settimeout(0.2)
        with edge.stopped():
            for client in clients:
                client.sendall(head)
                with suppress(TimeoutError):
                    _send_without_end(client, b"a" * (1 << 16), 32 << 20)
        time.sleep(0.5)
        connections = list(edge.server.server_state.connections)
        bodies = [len(each.cycle.body) for each in connections if isinstance(each, Http)]
        is_over.set()
    assert len(bodies) == 8
    assert all(bodies)
    # uvicorn's own mark of 64 KiB, and one read more.
    assert max(bodies) <= 128 << 10


def test_the_request_of_another_source_starts_before_a_flood_that_came_first() -> None:
    sources: list[str] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            sources.append(scope["client"][0])
        await app(scope, receive, send)

    with _edge(note, most=256) as edge, ExitStack() as stack:
        flood = [stack.enter_context(edge.connect()) for _ in range(100)]
        other = stack.enter_context(edge.connect("127.0.0.2"))
        for client in (*flood, other):
            client.sendall(GET + b"\r\n")
            _read_ok(client)
        sources.clear()
        with edge.stopped():
            for client in (*flood, other):
                client.sendall(GET + b"\r\n")
        for client in (*flood, other):
            _read_ok(client)
    assert len(sources) == 101
    assert sources.index("127.0.0.2") < 5


def test_bytes_of_unread_answers_are_bounded_and_others_get_theirs() -> None:
    with _edge(most=64) as edge, ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(edge.connect())
            client.sendall(GET.replace(b"/ ", b"/large ", 1) + b"\r\n")
            assert client.recv(10)
        with edge.connect("127.0.0.2") as other:
            other.sendall(GET.replace(b"/ ", b"/large ", 1) + b"connection: close\r\n\r\n")
            assert len(_read(other)) > len(LARGE.body)
        connections = list(edge.server.server_state.connections)
        unread = [each.transport.get_write_buffer_size() for each in connections]
    # A source may leave 16 MiB unread, or one answer of any size.
    assert sum(size > 0 for size in unread) == 1


def test_requests_sent_ahead_of_their_answers_are_bounded() -> None:
    began, ended = threading.Event(), threading.Event()

    async def until_disconnect(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            began.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            ended.set()

    with _edge(until_disconnect) as edge, edge.connect() as client:
        client.sendall(GET + b"\r\n")
        assert began.wait(10)
        client.sendall((GET + b"\r\n") * 1000)
        assert _read(client) == b""
        # Also the request at work, which was not the last one that came.
        assert ended.wait(10)
        assert edge.open_after(0.2) == 0


@pytest.mark.parametrize(
    "trickle",
    [lambda client: None, lambda client: client.sendall(b"a")],
    ids=["silent", "a byte at a time"],
)
def test_unfinished_heads_are_closed_in_time(trickle: Callable[[socket.socket], None]) -> None:
    with _edge(patience_seconds=0.5) as edge, ExitStack() as stack:
        clients = [stack.enter_context(edge.connect()) for _ in range(20)]
        for client in clients:
            client.sendall(GET)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            for client in clients:
                with suppress(ConnectionError):
                    trickle(client)
            time.sleep(0.1)
        assert edge.open_after(0.2) == 0


def test_what_comes_after_an_answer_gets_no_more_time_than_a_head() -> None:
    with _edge(patience_seconds=0.5) as edge, edge.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        with suppress(ConnectionError):
            for _ in range(20):
                client.sendall(b"a")
                time.sleep(0.1)
        assert edge.open_after(0.1) == 0


def test_a_client_that_takes_nothing_of_its_answer_is_closed() -> None:
    with _edge(patience_seconds=0.5) as edge, edge.connect() as client:
        client.sendall(GET.replace(b"/ ", b"/large ", 1) + b"\r\n")
        assert client.recv(10)
        assert edge.open_after(1.5) == 0


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it() -> None:
    with _edge(patience_seconds=0.5) as edge, edge.connect() as client:
        client.sendall(GET.replace(b"/ ", b"/large ", 1) + b"connection: close\r\n\r\n")
        received = 0
        while piece := client.recv(1 << 20):
            received += len(piece)
            time.sleep(0.02)
        assert received > len(LARGE.body)


def test_a_flood_of_unfinished_heads_keeps_nobody_out() -> None:
    with _edge(most=64) as edge, ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(edge.connect()).sendall(GET)
        with edge.connect("127.0.0.2") as other:
            assert _is_answered(other)
        assert edge.open_after(0.2) <= 64


def test_one_address_gets_half_of_the_connections() -> None:
    with _edge(most=64) as edge, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(edge.connect()).sendall(GET)
        assert edge.open_after(0.2) == 32


def test_an_address_with_half_of_the_connections_at_work_gets_no_more() -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["client"][0] == "127.0.0.1":
            while (await receive())["type"] != "http.disconnect":
                pass
        await app(scope, receive, send)

    with _edge(never, most=64) as edge, ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(edge.connect()).sendall(GET + b"\r\n")
        time.sleep(0.2)
        with edge.connect() as one_more, edge.connect("127.0.0.2") as other:
            assert not _is_answered(one_more)
            assert _is_answered(other)


def test_a_trusted_proxy_may_have_all_connections() -> None:
    with _edge(most=64, trusted="127.0.0.0/8") as edge, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(edge.connect()).sendall(GET)
        assert edge.open_after(0.2) == 64


def test_a_request_under_way_is_not_closed_for_a_new_connection() -> None:
    release = threading.Event()

    async def held(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            while not release.is_set():
                await asyncio.sleep(0.01)
        await app(scope, receive, send)

    with _edge(held, most=16, trusted="127.0.0.1") as edge, ExitStack() as stack:
        busy = stack.enter_context(edge.connect())
        busy.sendall(GET + b"\r\n")
        time.sleep(0.1)
        for _ in range(50):
            stack.enter_context(edge.connect()).sendall(GET)
        time.sleep(0.1)
        release.set()
        assert busy.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
    ],
)
def test_a_source_is_an_address_or_a_customers_network(one: str, other: str, is_same: bool) -> None:
    connections = Connections(64, ())
    assert (connections.source(one) == connections.source(other)) is is_same


def test_a_port_that_is_taken_ends_the_service_with_a_failure(edge: Edge) -> None:
    settings = Settings(auth="off", port=edge.address[1])
    with pytest.raises(SystemExit) as ended:
        make_server(app, settings).run()
    assert ended.value.code not in (0, None)
