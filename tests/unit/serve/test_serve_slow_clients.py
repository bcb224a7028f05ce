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
async def client_of(serving: Replica) -> AsyncIterator[httpx.AsyncClient]:
    """Of a replica that takes on few requests, whose bodies and versions may take a second."""
    limits = {
        "max_requests_in_flight": MOST,
        "min_version_wait_seconds": 1.0,
        "body_seconds": 1.0,
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
        await asyncio.sleep(60)
        yield b""

    headers = {"authorization": key}
    return asyncio.ensure_future(client.post("/v1/embeddings", content=nothing(), headers=headers))


@pytest.mark.parametrize(
    ("hold", "ended_with"), [(waits_for_a_version, {503}), (sends_no_body, {408})]
)
def test_one_key_that_holds_requests_leaves_room_for_others(
    serving: Replica, hold: Ask, ended_with: set[int]
) -> None:
    async def hold_and_ask() -> tuple[list[int], httpx.Response, list[int]]:
        async with client_of(serving) as client:
            held = [hold(client, "greedy") for _ in range(3 * MOST)]
            await asyncio.sleep(0.1)
            refused = [each.result() for each in held if each.done()]
            modest = await client.post(
                "/v1/embeddings", json=BODY, headers={"authorization": "modest"}
            )
            waiting = [each for each in held if not each.done()]
            assert len(waiting) == MOST // 2
            ends = await asyncio.gather(*waiting)
            assert all("retry-after" in each.headers for each in refused)
            return [each.status_code for each in refused], modest, [e.status_code for e in ends]

    refused, modest, ends = asyncio.run(hold_and_ask())
    assert refused == [429] * (3 * MOST - MOST // 2)
    assert modest.status_code == 200
    assert set(ends) == ended_with


def test_what_was_held_is_free_again(serving: Replica) -> None:
    async def hold_and_ask_again() -> list[int]:
        async with client_of(serving) as client:
            await asyncio.gather(*(waits_for_a_version(client, "a") for _ in range(MOST)))
            asked = [
                client.post("/v1/embeddings", json=BODY, headers={"authorization": "a"})
                for _ in range(MOST // 2)
            ]
            return [each.status_code for each in await asyncio.gather(*asked)]

    assert asyncio.run(hold_and_ask_again()) == [200] * (MOST // 2)
