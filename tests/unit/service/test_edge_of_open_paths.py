"""Paths without a key: responses are cached, limited by address, and load nothing from elsewhere."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.core import GaugeMetricFamily

from cmcl.storage.local import LocalStore
from service.api.authentication import Refusals
from service.api.operations import TTLCache, in_thread
from service.app import Parts, create_app
from service.auth.rate_limiter import (
    FAILURES_PER_MINUTE,
    OPEN_PER_MINUTE,
    REFUSALS_PER_MINUTE,
    RateLimiter,
)
from service.core.errors import DatabaseUnavailable, TooManyRequests
from tests.fakes.control_plane import ControlPlane
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.served_app import served
from tests.unit.service.auth.key_client import ADMIN_KEY


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


class _CountingStore(FlakyStore):
    times = 0

    def keys(self, prefix: str) -> Iterator[str]:
        self.times += 1
        return super().keys(prefix)


def test_metrics_are_rendered_once_for_all_who_ask_within_a_second(plane: ControlPlane) -> None:
    counting = _Counting()
    plane.context.metrics.registry.register(counting)
    before = counting.times
    answers = _at_once(plane.app, "/metrics", 50)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    # More only where a busy machine takes more than a second.
    assert counting.times - before <= 3


def test_the_description_is_rendered_once(plane: ControlPlane) -> None:
    times = 0
    describe = plane.app.openapi

    def counted() -> int:
        nonlocal times
        times += 1
        return len(describe())

    async def ask() -> None:
        kept = TTLCache(in_thread(counted))
        await asyncio.gather(*(kept.get() for _ in range(20)))

    asyncio.run(ask())
    assert times == 1
    assert len({answer.content for answer in _at_once(plane.app, "/openapi.json", 20)}) == 1


def test_what_failed_is_made_again() -> None:
    async def fails() -> None:
        raise DatabaseUnavailable("it is away")

    kept = TTLCache(fails)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match="away"):
            asyncio.run(kept.get())


def test_readiness_is_checked_once_for_all_requests_within_a_second(plane: ControlPlane) -> None:
    store = _CountingStore(LocalStore(plane.folder / "counted"))
    app = create_app(plane.context.settings, Parts(store=store, launcher=plane.launcher))
    with closing(app.state.context):
        answers = _at_once(app, "/readyz", 50)
    assert {answer.status_code for answer in answers} == {200}
    assert store.times <= 3


@pytest.mark.usefixtures("_one_minute")
@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/docs"])
def test_an_address_may_not_ask_without_end_for_what_is_open(
    plane: ControlPlane, path: str
) -> None:
    statuses = [answer.status_code for answer in _at_once(plane.app, path, OPEN_PER_MINUTE + 50)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
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
    for _ in range(REFUSALS_PER_MINUTE):
        assert rates.count_refusal(address)
    for _ in range(FAILURES_PER_MINUTE):
        rates.check_address(address)
        rates.count_failure(address)
    # An owner may be called like an address.
    rates.count(address)
    for one_more in (rates.count_open, rates.check_address, rates.count):
        with pytest.raises(TooManyRequests):
            one_more(address)
    assert not rates.count_refusal(address)


@pytest.mark.usefixtures("_one_minute")
def test_an_address_that_is_refused_again_and_again_waits_and_no_other_does(
    tmp_path: Path,
) -> None:
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
            for _ in range(REFUSALS_PER_MINUTE):
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
        refusals = Refusals(RateLimiter(per_minute=1))

        async def refuse(address: str) -> asyncio.Task[bool]:
            task = asyncio.create_task(refusals.delay(address))
            await asyncio.sleep(0)
            return task

        for _ in range(REFUSALS_PER_MINUTE):
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


def test_the_page_loads_nothing_from_elsewhere(plane: ControlPlane) -> None:
    page = plane.client.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in policy
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    assert not any(address.startswith(("http", "/")) for address in loaded)
    assert "<script>" not in page.text


def test_the_page_consists_of_what_the_package_has(plane: ControlPlane) -> None:
    pytest.importorskip("fastapi_swagger", reason="the package of /docs is not installed")
    for path, kind in (("script", "javascript"), ("style", "css"), ("start", "javascript")):
        answer = plane.client.get(f"/docs/{path}")
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert answer.headers["content-encoding"] == "gzip"
