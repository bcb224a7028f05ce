"""Every request is counted once, with any outcome."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
from starlette.types import Message, Receive, Scope, Send

from cmcl.contract.version import ANNOUNCEMENTS
from cmcl.fairness import Quota
from tests.unit.serve.conftest import MODEL, Replica
from workers.serve.api.app import create_api
from workers.serve.api.middleware import Middleware
from workers.serve.auth import Caller

SCOPE: Scope = {"type": "http", "path": "/v1/embeddings"}


async def nothing(*_: object) -> Message:
    return {"type": "http.disconnect"}


def counts_of(app: object, *, cancelled: bool = False) -> list[int]:
    """Counts of one request to this application."""
    counted: list[int] = []

    async def ask() -> None:
        whole = Middleware(app, counted.append, Quota(1, "bytes"))  # type: ignore[arg-type]
        task = asyncio.ensure_future(whole({**SCOPE}, nothing, nothing))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        if cancelled:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ValueError):
            await task

    asyncio.run(ask())
    return counted


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def never_answers(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError


async def breaks_off(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ValueError


@pytest.mark.parametrize(("app", "status"), [(answers, 201), (fails, 500), (breaks_off, 500)])
def test_a_request_is_counted_by_its_last_status(app: object, status: int) -> None:
    assert counts_of(app) == [status]


def test_a_cancelled_request_is_counted_as_given_up() -> None:
    assert counts_of(never_answers, cancelled=True) == [499]


def test_every_answer_of_a_replica_is_counted_once(serving: Replica) -> None:
    serving.embed()
    serving.embed(input=[])
    for path in ("/v1/models", "/v1/nothing", "/v1/embeddings", "/openapi.json"):
        serving.get(path)
    assert serving.metrics.statuses == [200, 400, 200, 404, 405, 200]


def test_internal_requests_are_not_counted(serving: Replica) -> None:
    assert [serving.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    news = {"model": MODEL, "generation": 1, "revision": 1}
    announced = serving.run(lambda client: client.post(ANNOUNCEMENTS, json=news))
    assert announced.status_code == 202
    assert serving.metrics.statuses == []


class Broken:
    """An authenticator with a bug."""

    ready = True

    def authenticate(self, authorization: str | None) -> Caller:
        raise RuntimeError("row 7 of the table of keys")


def test_a_bug_is_counted_once_and_shows_the_client_none_of_its_details(serving: Replica) -> None:
    serving.app = create_api(replace(serving.parts(serving.args), access=Broken()))
    error = serving.embed().json()["error"]
    assert (error["message"], error["code"]) == ("internal server error", "internal_error")
    assert serving.get("/v1/models").status_code == 500
    assert serving.metrics.statuses == [500, 500]


async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
    status = 401 if scope["path"] == "/wrong" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_a_flood_of_wrong_keys_waits_and_delays_no_valid_one() -> None:
    """Each of its connections gets few responses, and takes little processor time."""
    whole = Middleware(refuses, lambda _: None, Quota(1, "bytes"), refusal_seconds=0.3)

    async def seconds_of(path: str, times: int) -> float:
        began = asyncio.get_running_loop().time()
        for _ in range(times):
            await whole({"type": "http", "path": path}, nothing, nothing)  # type: ignore[arg-type]
        return asyncio.get_running_loop().time() - began

    async def flood() -> tuple[float, float]:
        await seconds_of("/wrong", 600)
        wrong = asyncio.ensure_future(seconds_of("/wrong", 20))
        return await seconds_of("/right", 20), await wrong

    right, wrong = asyncio.run(flood())
    assert wrong >= 2 * 0.3
    assert right < wrong
