"""What HAProxy in front of a replica bounds, so that the replica need not: on real sockets, with attacks of
benchmarks/isolation. The replica has uvicorn's parser."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cmcl.fairness import Quota
from tests.fakes.haproxy import Proxy, proxy
from tests.fakes.segments import read_until
from tests.fakes.served_app import served
from tests.fakes.waiting import until
from workers.serve.api.context import hold_until_sent
from workers.serve.api.middleware import Middleware

# Ray's own models warn while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

SECONDS = 60.0
GET = b"GET /answer HTTP/1.1\r\nhost: localhost\r\n\r\n"


@contextmanager
def behind_proxy(app: ASGIApp, **different: object) -> Iterator[Proxy]:
    """HAProxy in front of the app, which Ray's probes do not reach."""

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        is_probe = scope["path"] == "/-/healthz"
        await (Response() if is_probe else app)(scope, receive, send)

    with (
        served(Middleware(whole, lambda _: None, Quota(1 << 30, "bytes"))) as url,
        proxy(httpx.URL(url).port or 0, settings={}, **different) as running,
    ):
        yield running


def test_a_body_in_chunks_of_one_byte_reaches_a_replica_in_pieces_of_a_buffer() -> None:
    """A million chunks would be a million steps of the parser, in which the replica answers no other request."""
    pieces: list[int] = []
    steps: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def watch() -> None:
            while True:
                before = time.thread_time()
                await asyncio.sleep(0)
                steps.append(time.thread_time() - before)

        watching = asyncio.create_task(watch())
        is_last = False
        while not is_last:
            message = await receive()
            pieces.append(len(message["body"]))
            is_last = not message["more_body"]
        watching.cancel()
        await Response(b"the body")(scope, receive, send)

    count = 1 << 20
    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with behind_proxy(app) as running, running.connect() as client:
        client.sendall(head + b"1\r\na\r\n" * count + b"0\r\n\r\n")
        assert read_until(client, b"the body").startswith(b"HTTP/1.1 200 OK")
    assert sum(pieces) == count
    assert len(pieces) < 500
    # But for one or two in which garbage was collected.
    assert sorted(steps)[-3] < 0.006


def test_a_client_that_reads_nothing_is_closed_and_holds_nothing_in_a_replica() -> None:
    rows = Quota(10, "rows")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hold_until_sent(Request(scope), rows, "owner", 1)
        await Response(bytes(32 << 20))(scope, receive, send)

    with behind_proxy(app, timeout_client_s=3) as running, running.connect() as client:
        client.sendall(GET)
        until(lambda: rows.total == 1)
        time.sleep(0.5)
        assert rows.total == 1
        until(lambda: rows.total == 0)
        received = 0
        while piece := client.recv(1 << 20):
            received += len(piece)
        assert received < 32 << 20


def test_what_claims_to_be_a_body_of_declared_length_and_chunks_is_one_in_chunks() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope["headers"]}
        assert b"content-length" not in names
        await Response(await Request(scope, receive).body() + b".")(scope, receive, send)

    with behind_proxy(app) as running, running.connect() as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 1000 + b"0\r\n\r\n"
        )
        assert read_until(client, b".").endswith(b"\r\n\r\n" + b"a" * 1000 + b".")
