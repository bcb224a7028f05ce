"""A small response is written whole or not at all."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from tests.fakes.segments import read_until, segments_received
from tests.fakes.served_app import served
from workers.serve.api.middleware import HttpProtocol, install_protocol

SECONDS = 120.0
GET = b"GET / HTTP/1.1\r\nhost: replica\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nhost: replica\r\n\r\n"


@contextmanager
def connected(app: ASGIApp) -> Iterator[socket.socket]:
    with served(app) as url:
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        with socket.create_connection(address, timeout=SECONDS) as client:
            yield client


def test_head_and_body_are_one_segment() -> None:
    with connected(Response(b"the body")) as client:
        for answers in range(1, 4):
            client.sendall(GET)
            assert read_until(client, b"the body").startswith(b"HTTP/1.1 200 OK")
            assert segments_received(client) == answers


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


def test_servers_that_are_started_after_it_was_asked_for_do_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", "somebody:else")
    install_protocol()
    # As Ray Serve makes it.
    config = uvicorn.Config(Response, factory=True, lifespan="off", log_config=None)
    config.load()
    assert config.http_protocol_class is HttpProtocol
