"""Which version answers: the live one, a minimum, or exactly one."""

import asyncio
import threading

import httpx
import pytest

from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from tests.fakes.versions import random_heads, store_version, stored_key
from tests.unit.serve.conftest import MODEL, SPEC, Replica
from workers.serve.settings import ServeSettings
from workers.serve.versions.cache import VersionCache
from workers.serve.versions.loading import ServedVersion, StoredVersions

BUDGET = 1 << 30


def loads_of_heads(replica: Replica) -> int:
    calls = list(replica.store.calls)
    keys = [stored_key(replica.store, MODEL, version, layout.HEADS) for version in (2, 3, 4)]
    return sum(calls.count(key) for key in keys)


def test_an_exact_version_answers_beside_the_live_one(serving: Replica) -> None:
    before = serving.embed().json()
    serving.publish(version=2)
    serving.poll()
    exact = serving.embed(model="scenes@1")
    assert exact.headers["x-model-version"] == "1"
    assert exact.json() == before
    assert serving.embed().headers["x-model-version"] == "2"


def test_the_live_version_by_number_loads_nothing(serving: Replica) -> None:
    serving.store.calls.clear()
    assert serving.embed(model="scenes@1").status_code == 200
    assert serving.store.calls == []


def test_only_the_last_exact_versions_are_kept(serving: Replica) -> None:
    for version in (2, 3, 4):
        store_version(serving.store, MODEL, version, SPEC, random_heads(SPEC, seed=version))
    serving.store.calls.clear()
    for version in (2, 3, 2, 3, 2, 4, 2):
        assert serving.embed(model=f"scenes@{version}").headers["x-model-version"] == str(version)
    assert loads_of_heads(serving) == 3
    serving.embed(model="scenes@3")
    assert loads_of_heads(serving) == 4


def test_a_damaged_exact_version_is_500_and_the_live_one_answers(serving: Replica) -> None:
    store_version(serving.store, MODEL, 2, SPEC, random_heads(SPEC, seed=2))
    serving.store.put(stored_key(serving.store, MODEL, 2, layout.HEADS), b"rubbish")
    response = serving.embed(model="scenes@2")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "version_damaged")
    assert serving.embed().status_code == 200


def test_requests_for_one_version_share_one_load(serving: Replica) -> None:
    entered, release = threading.Event(), threading.Event()
    loads: list[int] = []

    class HeldReads(StoredVersions):
        def manifest(self, model: str, number: int) -> VersionManifest:
            loads.append(number)
            entered.set()
            assert release.wait(60)
            return super().manifest(model, number)

    async def ask_ten_times() -> list[ServedVersion]:
        recent = VersionCache(HeldReads(serving.store), 2, BUDGET, serving.metrics)
        waiting = [asyncio.create_task(recent.find(MODEL, 1)) for _ in range(10)]
        await asyncio.to_thread(entered.wait, 5)
        waiting.pop().cancel()  # a client that hangs up takes nothing from the others
        release.set()
        return await asyncio.gather(*waiting)

    versions = asyncio.run(ask_ten_times())
    assert loads == [1]
    assert all(version.heads is versions[0].heads for version in versions)


def test_a_failed_load_is_tried_again(serving: Replica) -> None:
    assert serving.embed(model="scenes@2").status_code == 404
    store_version(serving.store, MODEL, 2, SPEC, random_heads(SPEC, seed=2))
    serving.store.broken = "versions/2"
    assert serving.embed(model="scenes@2").status_code == 503
    serving.store.broken = None
    assert serving.embed(model="scenes@2").headers["x-model-version"] == "2"


def test_a_minimum_that_is_reached_answers_at_once(serving: Replica) -> None:
    assert serving.embed({"x-min-model-version": "1"}).status_code == 200


def test_a_minimum_that_does_not_come_is_503(serving: Replica) -> None:
    response = serving.embed({"x-min-model-version": "2"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "at version 1, at least 2 is asked for" in response.json()["error"]["message"]


def test_a_minimum_of_an_unknown_model_is_404(serving: Replica) -> None:
    assert serving.embed({"x-min-model-version": "1"}, model="nothing").status_code == 404


@pytest.mark.parametrize("start", ["empty", "version 1"])
def test_a_request_waits_for_its_minimum(replica: Replica, start: str) -> None:
    if start != "empty":
        replica.publish(version=1)
    replica.poll()

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        body = {"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]}
        headers = {"x-min-model-version": "2"}
        asked = asyncio.create_task(client.post("/v1/embeddings", json=body, headers=headers))
        await asyncio.sleep(0)
        replica.publish(version=2)
        replica.poll()
        return await asked

    assert replica.run(ask).headers["x-model-version"] == "2"


def test_rows_beyond_the_limit_in_flight_are_429(serving: Replica) -> None:
    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        body = {"model": MODEL, "modality": "image", "input": [[1, 2, 3, 4, 5]] * 40}
        both = [client.post("/v1/embeddings", json=body) for _ in range(2)]
        first, second = sorted(await asyncio.gather(*both), key=lambda each: each.status_code)
        assert first.status_code == 200
        assert (await client.post("/v1/embeddings", json=body)).status_code == 200
        return second

    response = serving.run(ask)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert "40 rows are in use" in response.json()["error"]["message"]


def test_the_poll_interval_suits_the_kind_of_store() -> None:
    assert ServeSettings(store="file:///tmp/x").poll_interval_seconds == 0.1
    assert ServeSettings(store="s3://bucket").poll_interval_seconds == 1.0
    assert ServeSettings(store="s3://bucket", poll_seconds=0.5).poll_interval_seconds == 0.5
