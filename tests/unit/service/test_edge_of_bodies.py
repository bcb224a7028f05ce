"""The edge: bodies, open paths, and the shares of owners."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.core import GaugeMetricFamily
from starlette.types import Message, Receive

from service.api import limits
from service.api.authentication import Rejections
from service.api.operations import TTLCache
from service.auth.rate_limiter import (
    FAILURES_PER_MINUTE,
    OPEN_PER_MINUTE,
    REJECTIONS_PER_MINUTE,
    RateLimiter,
)
from service.core.errors import DatabaseUnavailable, TooManyRequests
from service.core.principal import EVERY_OWNER, LOCAL
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.served_app import served
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
    # Fewer bytes than permitted, and more values: it is not parsed.
    assert _post(plane, "/v1/datasets", _dataset(shards=[{}] * 120_000)).status_code == 413
    shards = [{"uri": f"file:///elsewhere/{number}.parquet"} for number in range(5000)]
    assert _post(plane, "/v1/datasets", _dataset(shards=shards)).status_code == 422


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": [0] * 90_000},
        {"shards": [WRONG_SHARD] * 9_000},
        {"shards": [{"uri": "x", **dict.fromkeys(map(str, range(90)), 0)}] * 1_000},
        {f"unknown-{number}": 0 for number in range(40_000)},
        {"shards": [dict.fromkeys(map(str, range(80_000)), 0)]},
        {"shards": [[0] * 90_000]},
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


@pytest.fixture
def _one_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all requests of a test count for one window of the limits, however slow the machine is.

    A second into a minute: the windows of the library are the minutes of the clock.
    """
    monkeypatch.setattr(time, "time", lambda: 1_800_000_001.0)


def _at_once(app: FastAPI, path: str, number: int) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.get(path) for _ in range(number)))

    return asyncio.run(ask())


class _Counting:
    """A collector that takes a while."""

    def __init__(self) -> None:
        self.times = 0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.times += 1
        yield GaugeMetricFamily("of_the_test", "Counts how often it was asked.", value=self.times)


def test_metrics_are_rendered_once_for_all_who_ask_within_a_second(plane: ControlPlane) -> None:
    counting = _Counting()
    plane.context.metrics.registry.register(counting)
    before = counting.times
    answers = _at_once(plane.app, "/metrics", 50)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    # More only where a busy machine takes more than a second.
    assert counting.times - before <= 3


def test_what_failed_is_made_again() -> None:
    async def fails() -> None:
        raise DatabaseUnavailable("it is away")

    kept = TTLCache(fails)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match="away"):
            asyncio.run(kept.get())


@pytest.mark.usefixtures("_one_minute")
@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/docs"])
def test_an_address_may_not_ask_without_end_for_what_is_open(
    plane: ControlPlane, path: str
) -> None:
    for _ in range(OPEN_PER_MINUTE - 1):
        plane.context.authenticator.rate_limiter.count_open("127.0.0.1")
    assert [plane.client.get(path).status_code for _ in range(2)] == [200, 429]
    for other in ("/healthz", "/readyz", "/v1/models"):
        assert plane.client.get(other).status_code == 200


@pytest.mark.usefixtures("_one_minute")
def test_a_rate_limited_address_gets_the_end_of_its_window() -> None:
    rates = RateLimiter(per_minute=1)
    for _ in range(OPEN_PER_MINUTE):
        rates.count_open("192.0.2.1")
    with pytest.raises(TooManyRequests) as refused:
        rates.count_open("192.0.2.1")
    assert refused.value.retry_after == 59


@pytest.mark.usefixtures("_one_minute")
def test_no_limit_of_an_address_is_used_up_by_another_limit() -> None:
    address = "192.0.2.1"
    rates = RateLimiter(per_minute=1)
    for _ in range(OPEN_PER_MINUTE):
        rates.count_open(address)
    for _ in range(REJECTIONS_PER_MINUTE):
        assert rates.count_rejection(address)
    for _ in range(FAILURES_PER_MINUTE):
        rates.check_address(address)
        rates.count_failure(address)
    # An owner may be called like an address.
    rates.count(address)
    for one_more in (rates.count_open, rates.check_address, rates.count):
        with pytest.raises(TooManyRequests):
            one_more(address)
    assert not rates.count_rejection(address)


@pytest.mark.usefixtures("_one_minute")
def test_an_address_that_is_refused_again_and_again_waits_and_no_other_does(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    key = {"Authorization": f"Bearer {ADMIN_KEY}"}

    async def ask(client: httpx.AsyncClient, headers: dict[str, str]) -> tuple[int, float]:
        began = time.monotonic()
        answer = await client.get("/v1/whoami", headers=headers)
        return answer.status_code, time.monotonic() - began

    async def flood() -> None:
        flooding = httpx.ASGITransport(plane.app, client=("192.0.2.1", 1))
        other = httpx.ASGITransport(plane.app, client=("192.0.2.2", 1))
        async with (
            httpx.AsyncClient(transport=flooding, base_url="http://localhost") as hostile,
            httpx.AsyncClient(transport=other, base_url="http://localhost") as client,
        ):
            for _ in range(REJECTIONS_PER_MINUTE):
                assert (await ask(hostile, {}))[0] == 401
            refused = [asyncio.create_task(ask(hostile, {})) for _ in range(20)]
            assert (await ask(hostile, key))[0] == 200
            assert (await ask(client, {}))[0] == 401
            answers = await asyncio.gather(*refused)
        assert {status for status, _ in answers} == {401}
        assert min(seconds for _, seconds in answers) >= 1.0

    with closing(plane):
        asyncio.run(flood())


@pytest.mark.usefixtures("_one_minute")
def test_delayed_refusals_are_bounded_and_those_beyond_close_their_connections() -> None:
    async def flood() -> None:
        refusals = Rejections(RateLimiter(per_minute=1))

        async def refuse(address: str) -> asyncio.Task[bool]:
            task = asyncio.create_task(refusals.delay(address))
            await asyncio.sleep(0)
            return task

        for _ in range(REJECTIONS_PER_MINUTE):
            assert (await refuse("192.0.2.1")).result() is True
        delayed = [await refuse("192.0.2.1") for _ in range(256)]
        assert not any(each.done() for each in delayed)
        assert (await refuse("192.0.2.1")).result() is False
        assert (await refuse("192.0.2.2")).result() is True
        for each in delayed:
            each.cancel()
        await asyncio.wait(delayed)
        again = await refuse("192.0.2.1")
        assert not again.done(), "places of delayed refusals are given back"
        again.cancel()

    asyncio.run(flood())


def test_a_render_that_hangs_delays_nothing_else(plane: ControlPlane) -> None:
    is_let_go, is_asked = threading.Event(), threading.Event()

    class Hanging:
        def collect(self) -> Iterator[GaugeMetricFamily]:
            is_asked.set()
            is_let_go.wait(30)
            yield GaugeMetricFamily("of_the_test", "Hangs.", value=1)

    is_let_go.set()
    plane.context.metrics.registry.register(Hanging())
    is_let_go.clear()
    is_asked.clear()
    with served(plane.app) as url, httpx.Client(base_url=url, timeout=30) as client:
        waiting = [
            threading.Thread(target=httpx.get, args=[f"{url}/metrics"], kwargs={"timeout": 60})
            for _ in range(50)
        ]
        for each in waiting:
            each.start()
        assert is_asked.wait(10)
        try:
            for path in ("/healthz", "/v1/models", "/openapi.json"):
                assert client.get(path).status_code == 200
        finally:
            is_let_go.set()
            for each in waiting:
                each.join()


def test_a_client_that_has_the_description_is_sent_nothing(plane: ControlPlane) -> None:
    first = plane.client.get("/openapi.json")
    assert first.headers["content-encoding"] == "gzip"
    again = plane.client.get("/openapi.json", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = plane.client.get("/openapi.json", headers={"Accept-Encoding": "identity"})
    assert plain.json() == first.json() == plane.app.openapi()
