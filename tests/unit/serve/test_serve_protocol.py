"""A small response is written whole or not at all."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import sha256

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from tests.fakes.segments import segments_received
from tests.fakes.served_app import served
from workers.serve.api.protocol import HttpProtocol, ParseScheduler, ParseStep, install_protocol

SECONDS = 120.0
GET = b"GET / HTTP/1.1\r\nhost: replica\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nhost: replica\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: replica\r\nconnection: close\r\n\r\n"


@contextmanager
def connected(app: ASGIApp) -> Iterator[socket.socket]:
    with served(app) as url:
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        with socket.create_connection(address, timeout=SECONDS) as client:
            yield client


def read_until(client: socket.socket, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        piece = client.recv(1 << 20)
        assert piece, f"closed after {found!r}"
        found += piece
    return found


def test_head_and_body_are_one_segment() -> None:
    with connected(Response(b"the body")) as client:
        for answers in range(1, 4):
            client.sendall(GET)
            assert read_until(client, b"the body").startswith(b"HTTP/1.1 200 OK")
            assert segments_received(client) == answers


def test_an_answer_without_a_body_leaves_as_well() -> None:
    with connected(Response(b"the body")) as client:
        client.sendall(HEAD)
        assert b"content-length: 8" in read_until(client, b"\r\n\r\n")
        assert segments_received(client) == 1


def test_expect_100_continue_is_answered_before_the_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        await Response(body)(scope, receive, send)

    waits = b"POST / HTTP/1.1\r\nhost: replica\r\nexpect: 100-continue\r\ncontent-length: 8\r\n\r\n"
    with connected(app) as client:
        client.sendall(waits)
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        client.sendall(b"the body")
        assert read_until(client, b"the body").startswith(b"HTTP/1.1 200 OK")
        assert segments_received(client) == 2


def test_requests_that_come_together_are_answered_one_after_the_other() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(scope["path"])(scope, receive, send)

    with connected(app) as client:
        client.sendall(GET.replace(b"/", b"/1", 1) + HEAD + GET.replace(b"/", b"/2", 1))
        answers = read_until(client, b"/2").split(b"HTTP/1.1 200 OK")
        assert [answer.partition(b"\r\n\r\n")[2] for answer in answers] == [b"", b"/1", b"", b"/2"]


def test_an_answer_that_breaks_off_does_not_look_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    with connected(app) as client:
        client.sendall(GET)
        assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert client.recv(1) == b""


def test_what_the_server_itself_refuses_leaves_before_the_connection_is_closed() -> None:
    with connected(Response(b"the body")) as client:
        client.sendall(b"no HTTP at all\r\n\r\n")
        assert read_until(client, b"received.").startswith(b"HTTP/1.1 400")
        assert client.recv(1) == b""


@pytest.mark.parametrize("pieces", [1, 64])
def test_a_large_answer_comes_whole(pieces: int) -> None:
    size = 16 << 20
    piece = bytes(range(256)) * (size // pieces // 256)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield piece

    headers = {"content-length": str(size)}
    with connected(StreamingResponse(body(), headers=headers)) as client:
        client.sendall(LAST)
        received = bytearray()
        while chunk := client.recv(1 << 20):
            received += chunk
    assert bytes(received).partition(b"\r\n\r\n")[2] == piece * pieces


def test_servers_that_are_started_after_it_was_asked_for_do_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", "somebody:else")
    install_protocol()
    # As Ray Serve makes it.
    config = uvicorn.Config(Response, factory=True, lifespan="off", log_config=None)
    config.load()
    assert config.http_protocol_class is HttpProtocol


CHUNKS = 1 << 20


def test_chunks_of_one_byte_are_parsed_in_short_steps_and_others_are_answered_between() -> None:
    sizes: list[int] = []
    steps: list[float] = []
    events: list[str] = []

    async def watch() -> None:
        """Measure the processor time of the event loop's thread between two turns of this task."""
        while "body" not in events:
            before = time.thread_time()
            await asyncio.sleep(0)
            steps.append(time.thread_time() - before)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            watching = asyncio.create_task(watch())
            is_last = False
            while not is_last:
                message = await receive()
                sizes.append(len(message["body"]))
                is_last = not message["more_body"]
            events.append("body")
            await watching
        else:
            events.append("probe")
        await Response(b"the body")(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nhost: replica\r\ntransfer-encoding: chunked\r\n\r\n"
    with served(app) as url, ExitStack() as stack:
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        client, other = (
            stack.enter_context(socket.create_connection(address, timeout=SECONDS))
            for _ in range(2)
        )
        body = threading.Thread(
            target=client.sendall, args=(head + b"1\r\na\r\n" * CHUNKS + b"0\r\n\r\n",)
        )
        body.start()
        while not sizes:
            time.sleep(0.001)
        other.sendall(GET)
        assert read_until(other, b"the body").startswith(b"HTTP/1.1 200 OK")
        assert read_until(client, b"the body").startswith(b"HTTP/1.1 200 OK")
        body.join()
    assert events == ["probe", "body"]
    assert sum(sizes) == CHUNKS
    assert max(sizes) <= 48 << 10
    # But for one or two in which garbage was collected.
    assert sorted(steps)[-3] < 0.006


def test_a_flood_of_pipelined_requests_closes_the_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(3600)

    with connected(app) as client:
        client.sendall(GET * 100)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""


@pytest.mark.parametrize(
    "pieces",
    [(3 << 20,), (200_000,), (6_000,), (1, 40_000, 40_000, 3), (70_000, 1, 1, 300_000)],
)
def test_a_body_of_any_size_arrives_whole(pieces: tuple[int, ...]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        await Response(sha256(body).hexdigest())(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nhost: replica\r\ncontent-length: %d\r\n\r\n"
    generator = np.random.default_rng(0)
    with connected(app) as client:
        for _ in range(3):
            bodies = [generator.bytes(each) for each in pieces]
            client.sendall(head % sum(pieces))
            for body in bodies:
                time.sleep(0.02)
                client.sendall(body)
            whole = b"".join(bodies)
            answer = read_until(client, sha256(whole).hexdigest().encode())
            assert answer.startswith(b"HTTP/1.1 200 OK")
        # What follows a body in the same segment is the next request.
        client.sendall((head % len(whole) + whole) * 3)
        answers = b""
        while answers.count(sha256(whole).hexdigest().encode()) < 3:
            received = client.recv(1 << 16)
            assert received
            answers += received


@pytest.mark.parametrize("size", [100, 5_000, 30_000])
def test_a_request_with_a_small_body_reaches_the_application_in_one_piece(size: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        text = f"{len(message['body'])} {message['more_body']}."
        await Response(text)(scope, receive, send)

    request = b"POST / HTTP/1.1\r\nhost: replica\r\ncontent-length: %d\r\n\r\n" % size
    with connected(app) as client:
        for _ in range(3):
            client.sendall(request + bytes(size))
            assert read_until(client, b".").endswith(f"\r\n\r\n{size} False.".encode())


def test_what_claims_to_be_a_body_of_declared_length_and_chunks_is_refused() -> None:
    """The chunks would be parsed as one piece, which has no bound."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(await Request(scope, receive).body())(scope, receive, send)

    with connected(app) as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nhost: replica\r\ncontent-length: 100000\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 400")


def test_steps_that_wait_run_by_source_alternately() -> None:
    ran: list[str] = []

    async def use() -> None:
        scheduler = ParseScheduler()
        for name in ("a1", "a2", "a3", "b1"):
            scheduler.wait(ParseStep(name[0], partial(ran.append, name)))
        await asyncio.sleep(0.01)

    asyncio.run(use())
    assert ran == ["a1", "b1", "a2", "a3"]


def test_a_request_does_not_wait_behind_large_bodies_of_its_source() -> None:
    """Behind HAProxy all connections have the same source."""
    ran: list[str] = []

    async def use() -> None:
        scheduler = ParseScheduler()
        for name in ("body 1", "body 2", "body 3", "request"):
            is_body = name != "request"
            scheduler.wait(ParseStep("a", partial(ran.append, name), is_body=is_body))
        await asyncio.sleep(0.01)

    asyncio.run(use())
    assert ran == ["body 1", "request", "body 2", "body 3"]


@pytest.mark.parametrize(("seconds", "is_body", "runs"), [(0.03, False, 0), (0.003, True, 1)])
def test_a_turn_that_has_parsed_for_long_leaves_the_rest_to_the_next_one(
    seconds: float, is_body: bool, runs: int
) -> None:
    """Large bodies have less of it, and requests can follow them."""
    ran: list[str] = []

    async def use() -> list[bool]:
        scheduler = ParseScheduler()
        now = [
            scheduler.run(ParseStep("a", lambda: time.sleep(seconds), is_body)),
            scheduler.run(ParseStep("a", partial(ran.append, "body"), is_body=True)),
            scheduler.run(ParseStep("a", partial(ran.append, "request"))),
        ]
        assert len(ran) == runs
        await asyncio.sleep(0.01)
        return [*now, scheduler.run(ParseStep("a", partial(ran.append, "last")))]

    assert asyncio.run(use()) == [True, False, bool(runs), True]
    assert sorted(ran) == ["body", "last", "request"]
