"""Which version answers: the live one, a minimum, or exactly one."""

import asyncio

import httpx
import pytest

from cmcl.storage import layout
from tests.fakes.versions import random_heads, store_version, stored_key
from tests.unit.serve.conftest import MODEL, SPEC, Replica
from workers.serve.settings import ServeSettings

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


def test_the_poll_interval_suits_the_kind_of_store() -> None:
    assert ServeSettings(store="file:///tmp/x").poll_interval_seconds == 0.1
    assert ServeSettings(store="s3://bucket").poll_interval_seconds == 1.0
    assert ServeSettings(store="s3://bucket", poll_seconds=0.5).poll_interval_seconds == 0.5
