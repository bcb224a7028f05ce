"""Requests count for the limits until their response has been sent, so slow readers cannot pile up."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message

from tests.unit.serve.conftest import MODEL, Replica, asgi_scope
from workers.serve.api.app import create_api
from workers.serve.api.context import Replica as Parts

TIMEOUT = 60.0


IMAGE = [1, 2, 3, 4, 5]
EMBEDDINGS: tuple[str, dict[str, object]] = (
    "/v1/embeddings",
    {"model": MODEL, "modality": "image", "input": [IMAGE] * 3},
)
Take = Callable[[], Awaitable[object]]


async def at_once() -> None:
    """A client that reads at once."""


async def ask(app: ASGIApp, path: str, fields: dict[str, object], take: Take) -> tuple[int, int]:
    """Return status and bytes of the response to a POST; `take` is awaited for each chunk."""
    body = json.dumps(fields).encode()
    received = iter([{"type": "http.request", "body": body, "more_body": False}])
    sent: list[Message] = []

    async def receive() -> Message:
        for message in received:
            return message
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await take()
        sent.append(message)

    scope = asgi_scope("POST", path, length=len(body))
    await app(scope, receive, send)
    return sent[0]["status"], sum(len(each.get("body", b"")) for each in sent)


def held_by(parts: Parts) -> tuple[int, int, int]:
    """Requests, rows and bytes that are in flight."""
    admission = parts.admission
    return admission.requests.total, admission.rows.total, admission.bytes.total


def test_a_request_and_its_answer_count_while_the_client_does_not_read(serving: Replica) -> None:
    parts = serving.parts(serving.args)

    async def read_late() -> None:
        reaches, reads = asyncio.Event(), asyncio.Event()

        async def later() -> None:
            reaches.set()
            await reads.wait()

        asked = asyncio.create_task(ask(create_api(parts), *EMBEDDINGS, later))
        await asyncio.wait_for(reaches.wait(), TIMEOUT)
        held = held_by(parts)
        reads.set()
        status, size = await asked
        assert status == 200
        assert held == (1, 3, size)

    asyncio.run(read_late())
    assert held_by(parts) == (0, 0, 0)


def test_unread_responses_are_limited(serving: Replica) -> None:
    args = serving.args.model_copy(update={"max_rows": 3, "max_rows_in_flight": 8})
    parts = serving.parts(args)
    app = create_api(parts)

    async def pile_up() -> list[int]:
        reads = asyncio.Event()
        slow = [asyncio.create_task(ask(app, *EMBEDDINGS, reads.wait)) for _ in range(2)]
        async with asyncio.timeout(TIMEOUT):
            while parts.admission.rows.total < 6:
                await asyncio.sleep(0.005)
        refused, _ = await ask(app, *EMBEDDINGS, at_once)
        reads.set()
        statuses = [status for status, _ in await asyncio.gather(*slow)]
        return [refused, *statuses, (await ask(app, *EMBEDDINGS, at_once))[0]]

    assert asyncio.run(pile_up()) == [429, 200, 200, 200]
