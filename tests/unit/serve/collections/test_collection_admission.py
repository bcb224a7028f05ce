"""Limits that requests about collections count for: exports, and rows that are encoded."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import httpx
import pytest
from starlette.types import ASGIApp, Message

from tests.fakes.letter_encoder import LetterEncoders
from tests.unit.serve.collections.conftest import Searching
from tests.unit.serve.collections.scene import feature
from tests.unit.serve.conftest import asgi_scope
from workers.serve.api.app import create_api
from workers.serve.api.context import Admission
from workers.serve.api.context import Replica as Parts

# One of them is kept for another owner.
MOST = 3


@pytest.fixture
def parts(searching: Searching) -> Parts:
    """A replica with rows to export, and a time limit of a third of a second per chunk."""
    one = {"id": "a", "modality": "image", "feature": feature("image", 0).tolist()}
    revision = searching.add("things", [one])
    searching.found("things", revision, query={"modality": "image", "feature": one["feature"]})
    args = searching.args.model_copy(update={"max_exports": MOST})
    return replace(searching.parts(args), collections=searching.collections)


async def export(app: ASGIApp, takes: Callable[[Message], Awaitable[None]]) -> tuple[int, bool]:
    """Return the status, and whether the response is complete; `takes` may read slowly."""
    seen: list[Message] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await takes(message)
        seen.append(message)

    async def receive() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    scope = asgi_scope("GET", "/v1/collections/things/export", b"format=parquet")
    await app(scope, receive, send)
    return seen[0]["status"], not seen[-1].get("more_body", True)


async def at_once(_: Message) -> None:
    """A client that reads at once."""


def test_more_exports_than_permitted_are_refused(parts: Parts) -> None:
    app = create_api(parts)
    reads = asyncio.Event()

    async def later(_: Message) -> None:
        await reads.wait()

    async def crowd() -> tuple[tuple[int, bool], list[tuple[int, bool]], tuple[int, bool]]:
        slow = [asyncio.ensure_future(export(app, later)) for _ in range(MOST - 1)]
        while parts.admission.exports.total < MOST - 1:
            await asyncio.sleep(0.001)
        refused = await export(app, at_once)
        reads.set()
        return refused, await asyncio.gather(*slow), await export(app, at_once)

    refused, slow, after = asyncio.run(crowd())
    assert refused[0] == 429
    assert slow == [(200, True)] * (MOST - 1)
    assert after == (200, True)


@pytest.fixture
def few(parts: Parts, searching: Searching) -> Parts:
    """A replica that takes two requests, one of each owner."""
    args = parts.args.model_copy(update={"max_requests_in_flight": 2})
    made = replace(parts, args=args, admission=Admission(args))
    searching.app = create_api(made)
    return made


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/models/scenes",
        "/v1/models/scenes@1",
        "/v1/collections",
        "/v1/collections/things",
        "/v1/collections/things/items",
        "/v1/collections/things/export?format=parquet",
    ],
)
def test_every_route_that_reads_takes_a_place_and_gives_it_back(
    few: Parts, searching: Searching, path: str
) -> None:
    requests = few.admission.requests
    with requests.held("one", 1), requests.held("two", 1):
        refused = searching.get(path)
    assert refused.status_code == 429
    assert "2 requests are in use" in refused.json()["error"]["message"]
    assert searching.get(path).status_code == 200
    assert requests.total == 0


@pytest.mark.parametrize("path", ["items", "export?format=parquet"])
def test_a_place_is_held_while_a_revision_is_waited_for(
    few: Parts, searching: Searching, path: str
) -> None:
    address = f"/v1/collections/things/{path}"

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        headers = {"x-min-collection-revision": "999999999"}
        waiting = asyncio.ensure_future(client.get(address, headers=headers))
        for _ in range(100):
            await asyncio.sleep(0)
        assert (few.admission.requests.total, waiting.done()) == (1, False)
        refused = await client.get(address)
        waiting.cancel()
        await asyncio.wait([waiting])
        return refused

    refused = searching.run(ask)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "share_exceeded")
    assert few.admission.requests.total == 0


def test_rows_are_held_while_they_are_encoded(searching: Searching) -> None:
    parts = replace(searching.parts(searching.args), collections=searching.collections)
    searching.app = create_api(parts)
    held: list[int] = []

    async def look() -> None:
        held.append(parts.admission.rows.total)

    assert isinstance(searching.encoders, LetterEncoders)
    searching.encoders.during = look
    searching.add("things", [{"id": n, "modality": "text", "text": n} for n in ("a", "e", "i")])
    assert (held, parts.admission.rows.total) == ([3], 0)
