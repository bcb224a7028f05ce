"""Hostile clients on real sockets: bounded cost of heads, idle connections and unread responses."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from starlette.types import Receive, Scope, Send

from service.api.connections import Connections
from service.api.server import make_server
from service.core.settings import Settings
from tests.unit.service.edge import (
    GET,
    LARGE,
    Edge,
    app,
    is_answered,
    read_to_end,
    send_without_end,
    served_edge,
)


@pytest.fixture(scope="module")
def edge() -> Iterator[Edge]:
    """A server with the service's limits, except the number of connections."""
    with served_edge() as running:
        yield running


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
        # Bytes that the kernels of both ends hold, and the server has not read.
        assert send_without_end(client, piece) < 16 << 20


def test_a_head_that_is_too_large_is_answered_431(edge: Edge) -> None:
    with edge.connect() as client:
        client.sendall(GET + b"x-filler: " + b"a" * (32 << 10))
        assert read_to_end(client).startswith(b"HTTP/1.1 431 ")


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
        assert read_to_end(client).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "trickle",
    [lambda client: None, lambda client: client.sendall(b"a")],
    ids=["silent", "a byte at a time"],
)
def test_unfinished_heads_are_closed_in_time(trickle: Callable[[socket.socket], None]) -> None:
    with served_edge(idle_timeout_seconds=0.5) as edge, ExitStack() as stack:
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


def test_bytes_after_a_response_have_the_timeout_of_a_head() -> None:
    with served_edge(idle_timeout_seconds=0.5) as edge, edge.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        with suppress(ConnectionError):
            for _ in range(20):
                client.sendall(b"a")
                time.sleep(0.1)
        assert edge.open_after(0.1) == 0


def test_a_client_that_takes_nothing_of_its_answer_is_closed() -> None:
    with served_edge(idle_timeout_seconds=0.5) as edge, edge.connect() as client:
        client.sendall(GET.replace(b"/ ", b"/large ", 1) + b"\r\n")
        assert client.recv(10)
        assert edge.open_after(1.5) == 0


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it() -> None:
    with served_edge(idle_timeout_seconds=0.5) as edge, edge.connect() as client:
        client.sendall(GET.replace(b"/ ", b"/large ", 1) + b"connection: close\r\n\r\n")
        received = 0
        while piece := client.recv(1 << 20):
            received += len(piece)
            time.sleep(0.02)
        assert received > len(LARGE.body)


def test_a_flood_of_unfinished_heads_blocks_no_other_client() -> None:
    with served_edge(most=64) as edge, ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(edge.connect()).sendall(GET)
        with edge.connect("127.0.0.2") as other:
            assert is_answered(other)
        assert edge.open_after(0.2) <= 64


def test_one_address_gets_half_of_the_connections() -> None:
    with served_edge(most=64) as edge, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(edge.connect()).sendall(GET)
        assert edge.open_after(0.2) == 32


def test_an_address_may_hold_half_of_the_busy_connections() -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["client"][0] == "127.0.0.1":
            while (await receive())["type"] != "http.disconnect":
                pass
        await app(scope, receive, send)

    with served_edge(never, most=64) as edge, ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(edge.connect()).sendall(GET + b"\r\n")
        time.sleep(0.2)
        with edge.connect() as one_more, edge.connect("127.0.0.2") as other:
            assert not is_answered(one_more)
            assert is_answered(other)


def test_a_trusted_proxy_may_have_all_connections() -> None:
    with served_edge(most=64, trusted="127.0.0.0/8") as edge, ExitStack() as stack:
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

    with served_edge(held, most=16, trusted="127.0.0.1") as edge, ExitStack() as stack:
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
