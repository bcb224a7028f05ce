"""Hostile bodies: bounded cost until they are rejected, and of the rejection."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive

from service.api import limits
from service.core.principal import EVERY_OWNER, LOCAL
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.unit.service.access.operations import BODIES, WRITE, scopes
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient

JSON = {"Content-Type": "application/json"}
MIB = 1 << 20
MOST_ANSWER_BYTES = 64 << 10
WRONG_SHARD = {"uri": 1}


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[KeyClient]:
    """A key that may read and nothing else."""
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    yield KeyClient(plane, ADMIN_KEY).client_with_key("reader", ["read"])
    plane.close()


def _post(plane: ControlPlane, path: str, body: object) -> httpx.Response:
    text = body if isinstance(body, str) else json.dumps(body)
    return plane.client.post(path, content=text.encode(), headers=JSON)


def _dataset(**changes: object) -> dict[str, object]:
    pair = {"first": "image", "second": "text"}
    return {"model": "scenes", "name": "one", "pair": pair, "shards": [], **changes}


@pytest.mark.parametrize(
    "route",
    ["PUT /v1/uploads/{upload}/file", *(each for each in BODIES if scopes(each) == {WRITE})],
)
def test_no_byte_of_a_body_is_read_for_a_key_without_the_scope(
    reader: KeyClient, route: str
) -> None:
    class Unread(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            raise AssertionError("it was read")
            yield b""

    method, path = route.split(" ")
    path = path.replace("{upload}", "up-0123456789ab").replace("{dataset}", "ds-0123456789ab")
    path = path.replace("{model}", "scenes").replace("{modality}", "audio")
    kind = "application/octet-stream" if path.endswith("/file") else "application/json"
    headers = {"Content-Type": kind, "Transfer-Encoding": "chunked"}
    options = {"content": Unread(), "headers": headers}
    assert reader.request(method, path, **options).status_code == 403


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("nothing comes")


def _ask(
    app: FastAPI, receive: Receive, path: str, *headers: tuple[bytes, bytes], **scope: str
) -> list[Message]:
    """What the app sends for a request whose body `receive` brings."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    request = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers],
        **scope,
    }
    asyncio.run(asyncio.wait_for(app(request, receive, send), 60))
    return sent


@pytest.mark.parametrize("pieces", [[], [b"{", *[b" "] * 1000]], ids=["nothing", "a trickle"])
def test_a_body_that_comes_too_slowly_is_given_up(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]
) -> None:
    """The proxy waits for bodies of up to 63 KiB, and closes connections on which no byte comes."""
    monkeypatch.setattr(limits, "_BODY_SECONDS", 0.05)
    waiting = iter(pieces)

    async def receive() -> Message:
        if (piece := next(waiting, None)) is None:
            return await _never()
        await asyncio.sleep(0.002)
        return {"type": "http.request", "body": piece, "more_body": True}

    sent = _ask(plane.app, receive, "/v1/models", (b"transfer-encoding", b"chunked"))
    assert sent[0]["status"] == 400
    assert b"incomplete-body" in sent[1]["body"]
    assert b"which is the limit" in sent[1]["body"]


def test_a_body_that_is_cut_off_does_not_pass_for_a_whole_one(plane: ControlPlane) -> None:
    arrives: list[Message] = [
        {"type": "http.request", "body": b"{}", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return arrives.pop(0)

    sent = _ask(plane.app, receive, "/v1/models", (b"content-length", b"100"))
    assert b"incomplete-body" in sent[1]["body"]


def test_bytes_of_bodies_count_as_they_arrive_and_are_given_back(plane: ControlPlane) -> None:
    """An owner may hold four fifths of them; the rest stays for others."""
    bodies = plane.app.state.budgets.bodies
    share = 4 * (32 * MIB) // 5
    statuses = []
    for taken in (share, 0):
        with bodies.held(LOCAL.owner or EVERY_OWNER, taken):
            answer = plane.client.post("/v1/models", json={"name": "new", **SPEC})
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
    assert statuses == [429, 201]
    assert bodies.total == 0


def test_a_body_is_as_small_as_its_route_needs(plane: ControlPlane) -> None:
    padded = json.dumps({"name": "new", **SPEC}) + " " * (16 << 10)
    assert _post(plane, "/v1/models", padded).status_code == 413
    assert _post(plane, "/v1/webhooks", {"kinds": ["x"] * 100_000}).status_code == 413
    shards = [{"uri": f"file:///elsewhere/{number}.parquet"} for number in range(5000)]
    assert _post(plane, "/v1/datasets", _dataset(shards=shards)).status_code == 422


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": [0] * 340_000},
        {"shards": [WRONG_SHARD] * 9_000},
        {"shards": [{"uri": "x", **dict.fromkeys(map(str, range(90)), 0)}] * 1_000},
        {f"unknown-{number}": 0 for number in range(40_000)},
        {"shards": [dict.fromkeys(map(str, range(80_000)), 0)]},
        {"shards": [[0] * 100_000]},
    ],
    ids=["items", "wrong items", "fields of items", "fields", "fields of one item", "lists"],
)
def test_what_is_wrong_a_thousand_times_is_validated_a_hundred_times_at_most(
    plane: ControlPlane, changes: dict[str, object]
) -> None:
    response = _post(plane, "/v1/datasets", _dataset(**changes))
    assert response.status_code == 422
    assert len(response.content) <= MOST_ANSWER_BYTES
    answer = response.json()
    assert 1 <= len(answer["errors"]) <= 50
    assert len(answer["errors"]) + answer["more_errors"] <= 101


def test_fifty_errors_are_quoted_and_the_rest_is_counted(plane: ControlPlane) -> None:
    unknown = {f"unknown-{number}": 0 for number in range(90)}
    answer = _post(plane, "/v1/models", {"name": "new", **SPEC, **unknown}).json()
    assert len(answer["errors"]) == 50
    assert answer["more_errors"] == 40
    assert "87 more" in answer["detail"]


def test_addresses_that_are_not_permitted_are_counted(plane: ControlPlane) -> None:
    shards = [{"uri": f"file:///elsewhere/{number}.parquet"} for number in range(5_000)]
    answer = _post(plane, "/v1/datasets", _dataset(shards=shards)).json()
    assert len(answer["errors"]) + answer["more_errors"] == 5_000


@pytest.mark.parametrize(
    "letter", ["a", "\u4e2d", "\0"], ids=["ascii", "six bytes each", "control"]
)
def test_an_error_is_never_a_large_answer(plane: ControlPlane, letter: str) -> None:
    shards = [{"uri": letter * 1000 + str(number)} for number in range(150)]
    unknown = {letter * 100 + str(number): letter * 40 for number in range(15)}
    for path, body in (
        ("/v1/datasets", _dataset(shards=shards)),
        ("/v1/models", {"name": "new", **SPEC, **unknown}),
        ("/v1/models", {letter * 2_000: 0}),
    ):
        response = _post(plane, path, body)
        assert response.status_code == 422
        assert len(response.content) <= MOST_ANSWER_BYTES
        assert response.json()["errors"]
