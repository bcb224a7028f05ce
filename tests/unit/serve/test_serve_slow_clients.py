"""Clients that stall, are too slow, send too much, disconnect or half-close: they count for limits, and others are served."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from cmcl.fairness import share_of_one
from tests.fakes.served_app import served
from tests.fakes.waiting import until
from tests.unit.serve.conftest import MODEL, Replica
from workers.serve.api.app import create_api
from workers.serve.auth import Caller

MOST = 8
BODY = {"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]}

Ask = Callable[[httpx.AsyncClient, str], asyncio.Task[httpx.Response]]


class ByName:
    """`alice/1` and `alice/2` are keys of the owner alice."""

    @property
    def ready(self) -> bool:
        return True

    def authenticate(self, authorization: str | None) -> Caller:
        name = authorization or ""
        return Caller(name, name.partition("/")[0])


@asynccontextmanager
async def client_of(serving: Replica, seconds: float) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a replica with few requests in flight and these time limits."""
    limits = {
        "max_requests_in_flight": MOST,
        "min_version_wait_seconds": seconds,
        "body_seconds": seconds,
    }
    args = serving.args.model_copy(update=limits)
    app = create_api(replace(serving.parts(args), access=ByName()))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


def waits_for_a_version(client: httpx.AsyncClient, key: str) -> asyncio.Task[httpx.Response]:
    headers = {"authorization": key, "x-min-model-version": "99"}
    return asyncio.ensure_future(client.post("/v1/embeddings", json=BODY, headers=headers))


def sends_no_body(client: httpx.AsyncClient, key: str) -> asyncio.Task[httpx.Response]:
    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    headers = {"authorization": key}
    return asyncio.ensure_future(client.post("/v1/embeddings", content=nothing(), headers=headers))


@pytest.mark.parametrize("hold", [waits_for_a_version, sends_no_body])
def test_keys_of_one_owner_that_hold_requests_leave_room_for_others(
    serving: Replica, hold: Ask
) -> None:
    async def hold_and_ask() -> tuple[list[httpx.Response], httpx.Response]:
        async with client_of(serving, seconds=60) as client, asyncio.timeout(50):
            held = [hold(client, f"greedy/{number}") for number in range(3 * MOST)]
            while sum(each.done() for each in held) < 3 * MOST - share_of_one(MOST):
                await asyncio.sleep(0.01)
            modest = await client.post(
                "/v1/embeddings", json=BODY, headers={"authorization": "modest"}
            )
            refused = [each.result() for each in held if each.done()]
            waiting = [each for each in held if not each.done()]
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            return refused, modest

    refused, modest = asyncio.run(hold_and_ask())
    assert [each.status_code for each in refused] == [429] * (3 * MOST - share_of_one(MOST))
    assert all("retry-after" in each.headers for each in refused)
    assert modest.status_code == 200


@pytest.mark.parametrize(("hold", "status"), [(waits_for_a_version, 503), (sends_no_body, 408)])
def test_a_slow_request_is_answered_in_the_end(serving: Replica, hold: Ask, status: int) -> None:
    async def hold_one() -> int:
        async with client_of(serving, seconds=0.1) as client:
            return (await hold(client, "a")).status_code

    assert asyncio.run(hold_one()) == status


def stalls(
    client: httpx.AsyncClient, key: str, declared: int, sent: int
) -> asyncio.Task[httpx.Response]:
    """A body that stops after some bytes."""

    async def some() -> AsyncIterator[bytes]:
        yield b" " * sent
        await asyncio.sleep(3600)

    headers = {"authorization": key, "content-length": str(declared)}
    return asyncio.ensure_future(client.post("/v1/embeddings", content=some(), headers=headers))


@pytest.mark.parametrize("sent", [100, 19_000], ids=["little is sent", "much is sent"])
def test_stalled_bodies_of_an_owners_keys_refuse_no_query_of_another(
    serving: Replica, sent: int
) -> None:
    """Bytes count when they arrive, not when declared, and all keys of an owner together."""
    most = serving.args.max_body_bytes
    serving.args = serving.args.model_copy(update={"max_bytes_in_flight": 4 * most})

    async def stall_and_ask() -> tuple[list[int], list[int]]:
        async with client_of(serving, seconds=60) as client, asyncio.timeout(50):
            stalled = [stalls(client, f"greedy/{number}", most, sent) for number in range(6)]
            await asyncio.sleep(0.3)
            asked = [
                await client.post("/v1/embeddings", json=BODY, headers={"authorization": key})
                for key in ("modest/1", "modest/2")
            ]
            ended = [each.result().status_code for each in stalled if each.done()]
            for each in stalled:
                each.cancel()
            await asyncio.gather(*stalled, return_exceptions=True)
            return ended, [each.status_code for each in asked]

    refused, modest = asyncio.run(stall_and_ask())
    assert modest == [200, 200]
    assert refused == ([] if sent == 100 else [429] * 3)


SENT = json.dumps(BODY).encode()
SECONDS = 120.0


@pytest.fixture
def address(serving: Replica) -> Iterator[tuple[str, int]]:
    """A replica whose clients have a quarter of a second for their bodies."""
    args = serving.args.model_copy(update={"body_seconds": 0.25})
    with served(serving.app_of(args)) as url:
        parsed = httpx.URL(url)
        yield parsed.host, parsed.port or 0


def head(length: int, *headers: str) -> bytes:
    lines = [
        "POST /v1/embeddings HTTP/1.1",
        "host: 127.0.0.1",
        f"content-length: {length}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def connected(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=SECONDS)


def status_of(client: socket.socket) -> int:
    return int(client.recv(65536).split(b" ", 2)[1])


def assert_others_are_answered(address: tuple[str, int]) -> None:
    with connected(address) as client:
        client.sendall(head(len(SENT)) + SENT)
        assert status_of(client) == 200


def test_a_body_that_drips_is_given_up(address: tuple[str, int]) -> None:
    """Each byte comes in time; all of them do not."""
    with connected(address) as client:
        client.sendall(head(len(SENT)))
        client.settimeout(0.02)
        for byte in SENT:
            client.sendall(bytes([byte]))
            try:
                answer = client.recv(65536)
            except TimeoutError:
                continue
            assert answer.startswith(b"HTTP/1.1 408")
            break
        else:
            pytest.fail("the whole body was waited for")
    assert_others_are_answered(address)


def test_a_client_that_is_gone_in_the_middle_costs_nothing(serving: Replica) -> None:
    """It is gone long before its body would be given up."""
    args = serving.args.model_copy(update={"body_seconds": SECONDS})
    with served(serving.app_of(args)) as url:
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        for _ in range(20):
            with connected(address) as client:
                client.sendall(head(len(SENT)) + SENT[:10])
        assert_others_are_answered(address)
        until(lambda: len(serving.metrics.errors) == 20)
    assert set(serving.metrics.errors) == {499}


def test_huge_headers_are_refused(address: tuple[str, int]) -> None:
    with connected(address) as client:
        client.sendall(head(len(SENT), "x-much: " + "x" * 40_000) + SENT)
        assert status_of(client) == 431
    assert_others_are_answered(address)


def test_a_body_in_chunks_may_not_be_longer_than_others(address: tuple[str, int]) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    url = f"http://{address[0]}:{address[1]}/v1/embeddings"
    assert httpx.post(url, content=pieces(), timeout=SECONDS).status_code == 413
    assert httpx.post(url, content=iter([SENT[:9], SENT[9:]])).status_code == 200
