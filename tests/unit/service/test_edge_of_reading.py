"""Input is read in small steps shared by all connections, and little of it is in memory."""

import asyncio
import threading
import time
from contextlib import ExitStack, suppress

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.api.server import Http
from tests.unit.service.edge import (
    GET,
    LARGE,
    app,
    read_ok,
    read_to_end,
    send_without_end,
    served_edge,
)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Return the size of the body, once all of it has arrived."""
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
    with served_edge(echo) as running, running.connect() as client:
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
    with served_edge(note) as edge, edge.connect() as client:
        client.sendall(head + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    assert sum(sizes) == 100_000
    # A step is about 700 chunks; the request may get its turn after every other one.
    assert max(sizes) <= 2048


def test_little_of_a_body_is_in_memory_while_its_request_waits() -> None:
    is_over = threading.Event()

    async def unread(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            while scope["method"] == "POST" and not is_over.is_set():
                await asyncio.sleep(0.01)
            await PlainTextResponse("ok")(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n"
    with served_edge(unread) as edge, ExitStack() as stack:
        clients = [stack.enter_context(edge.connect()) for _ in range(8)]
        for client in clients:
            client.sendall(GET + b"\r\n")
            read_ok(client)
            client.settimeout(0.2)
        with edge.stopped():
            for client in clients:
                client.sendall(head)
                with suppress(TimeoutError):
                    send_without_end(client, b"a" * (1 << 16), 32 << 20)
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

    with served_edge(note, most=256) as edge, ExitStack() as stack:
        flood = [stack.enter_context(edge.connect()) for _ in range(100)]
        other = stack.enter_context(edge.connect("127.0.0.2"))
        for client in (*flood, other):
            client.sendall(GET + b"\r\n")
            read_ok(client)
        sources.clear()
        with edge.stopped():
            for client in (*flood, other):
                client.sendall(GET + b"\r\n")
        for client in (*flood, other):
            read_ok(client)
    assert len(sources) == 101
    assert sources.index("127.0.0.2") < 5


def test_bytes_of_unread_answers_are_bounded_and_others_get_theirs() -> None:
    with served_edge(most=64) as edge, ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(edge.connect())
            client.sendall(GET.replace(b"/ ", b"/large ", 1) + b"\r\n")
            assert client.recv(10)
        with edge.connect("127.0.0.2") as other:
            other.sendall(GET.replace(b"/ ", b"/large ", 1) + b"connection: close\r\n\r\n")
            assert len(read_to_end(other)) > len(LARGE.body)
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

    with served_edge(until_disconnect) as edge, edge.connect() as client:
        client.sendall(GET + b"\r\n")
        assert began.wait(10)
        client.sendall((GET + b"\r\n") * 1000)
        assert read_to_end(client) == b""
        # Also the request at work, which was not the last one that came.
        assert ended.wait(10)
        assert edge.open_after(0.2) == 0
