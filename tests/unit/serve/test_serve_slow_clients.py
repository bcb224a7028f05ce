"""Clients that hold a request and do nothing: counted, refused beyond a share, and nobody's harm."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from tests.unit.serve.conftest import MODEL, Replica
from workers.serve.access.port import Caller
from workers.serve.http.api import create_api

MOST = 8
BODY = {"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]}

Ask = Callable[[httpx.AsyncClient, str], asyncio.Task[httpx.Response]]


class ByName:
    """Whoever says a name is that one."""

    @property
    def ready(self) -> bool:
        return True

    def admit(self, authorization: str | None) -> Caller:
        return Caller(authorization or "", None)


@asynccontextmanager
async def client_of(serving: Replica, seconds: float) -> AsyncIterator[httpx.AsyncClient]:
    """Of a replica that takes on few requests, whose bodies and versions may take so long."""
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
def test_one_key_that_holds_requests_leaves_room_for_others(serving: Replica, hold: Ask) -> None:
    async def hold_and_ask() -> tuple[list[httpx.Response], httpx.Response]:
        async with client_of(serving, seconds=60) as client, asyncio.timeout(50):
            held = [hold(client, "greedy") for _ in range(3 * MOST)]
            while sum(each.done() for each in held) < 3 * MOST - MOST // 2:
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
    assert [each.status_code for each in refused] == [429] * (3 * MOST - MOST // 2)
    assert all("retry-after" in each.headers for each in refused)
    assert modest.status_code == 200


@pytest.mark.parametrize(("hold", "status"), [(waits_for_a_version, 503), (sends_no_body, 408)])
def test_whoever_holds_a_request_is_answered_in_the_end(
    serving: Replica, hold: Ask, status: int
) -> None:
    async def hold_one() -> int:
        async with client_of(serving, seconds=0.1) as client:
            return (await hold(client, "a")).status_code

    assert asyncio.run(hold_one()) == status


def test_what_was_held_is_free_again(serving: Replica) -> None:
    async def hold_and_ask_again() -> list[int]:
        async with client_of(serving, seconds=1.0) as client:
            await asyncio.gather(*(waits_for_a_version(client, "a") for _ in range(MOST)))
            asked = [
                client.post("/v1/embeddings", json=BODY, headers={"authorization": "a"})
                for _ in range(MOST // 2)
            ]
            return [each.status_code for each in await asyncio.gather(*asked)]

    assert asyncio.run(hold_and_ask_again()) == [200] * (MOST // 2)
