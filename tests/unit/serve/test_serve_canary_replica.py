"""A canary loads beside the live version, and never evicts it."""

import httpx
import pytest
from fastapi.testclient import TestClient

from cmcl.contract.policy import Canary, Observation
from tests.fakes.versions import random_heads, store_version
from tests.unit.serve.background import finished
from tests.unit.serve.conftest import MODEL, SPEC, Replica
from tests.unit.serve.test_serve_similarity import items
from workers.serve.api.app import create_api
from workers.serve.versions.lookup import routed_to_canary
from workers.storage import layout

ALL_CALLERS = {"version": 2, "revision": 1, "share": 1}
SHADOW_ONLY = {"version": 2, "revision": 1, "share": 0, "shadow": 0.5}


def try_out(replica: Replica, revision: int = 1, **canary: object) -> None:
    replica.point(generation=1, version=1, revision=revision, canary={**ALL_CALLERS, **canary})
    replica.poll()


@pytest.fixture
def trying(serving: Replica) -> Replica:
    """A replica with version 1 live and version 2 as canary for all callers."""
    store_version(serving.store, MODEL, 2, SPEC, random_heads(SPEC, seed=2))
    try_out(serving)
    return serving


def answering(replica: Replica, **headers: str) -> tuple[str, str]:
    response = replica.embed(headers)
    return response.headers["x-model-version"], response.headers["x-model-channel"]


def test_the_canary_answers_its_share_and_is_named_in_the_response(trying: Replica) -> None:
    assert answering(trying) == ("2", "canary")
    try_out(trying, revision=2, share=0)
    assert answering(trying) == ("1", "live")


def test_one_routing_key_selects_one_version(trying: Replica) -> None:
    try_out(trying, revision=2, share=0.5)
    seen = {
        key: {answering(trying, **{"x-routing-key": key}) for _ in range(5)} for key in "abcdefgh"
    }
    assert all(len(versions) == 1 for versions in seen.values())
    assert len(set.union(*seen.values())) == 2


def test_callers_without_a_key_get_both_versions(trying: Replica) -> None:
    try_out(trying, revision=2, share=0.5)
    assert len({answering(trying) for _ in range(40)}) == 2


def test_a_starting_canary_reads_only_its_version(serving: Replica) -> None:
    store_version(serving.store, MODEL, 2, SPEC, random_heads(SPEC, seed=2))
    serving.store.calls.clear()
    try_out(serving)
    assert not any("versions/1" in call for call in serving.store.calls)
    assert serving.metrics.swaps == [(MODEL, 1)]


def test_share_and_shadow_change_without_loading(trying: Replica) -> None:
    trying.store.calls.clear()
    try_out(trying, revision=2, share=0.25, shadow=0.5)
    live = trying.live.get(MODEL)
    assert live is not None
    assert live.canary is not None
    assert (live.canary.share, live.canary.shadow, live.revision) == (0.25, 0.5, 2)
    assert not any("versions/" in call for call in trying.store.calls)


def test_an_ended_canary_unloads_its_version(trying: Replica) -> None:
    trying.point(generation=1, version=1, revision=2)
    trying.poll()
    live = trying.live.get(MODEL)
    assert live is not None
    assert (live.canary, live.canary) == (None, None)
    assert trying.cache.get(MODEL, 2) is None
    assert answering(trying) == ("1", "live")


def test_promoting_the_canary_loads_nothing(trying: Replica) -> None:
    trying.point(generation=2, version=2, revision=2)
    trying.store.calls.clear()
    trying.poll()
    assert not any("versions/" in call for call in trying.store.calls)
    assert answering(trying) == ("2", "live")


def test_a_damaged_canary_leaves_the_live_version_alone(serving: Replica) -> None:
    store_version(serving.store, MODEL, 2, SPEC, random_heads(SPEC, seed=2))
    serving.store.put(layout.version_file(MODEL, 2, layout.HEADS), b"rubbish")
    try_out(serving)
    assert answering(serving) == ("1", "live")
    (refusal,) = serving.live.refusals(MODEL)
    assert (refusal.version, refusal.generation, refusal.failures) == (2, 1, 1)
    assert (refusal.kind, serving.metrics.refusal_kinds) == ("damaged", ["damaged"])
    assert "SHA-256" in refusal.reason


def test_a_canary_ends_although_the_next_version_is_damaged(trying: Replica) -> None:
    trying.publish(version=3)
    trying.store.delete(layout.version_file(MODEL, 3, layout.HEADS))
    trying.point(generation=2, version=3, revision=2)
    trying.poll()
    assert answering(trying) == ("1", "live")
    assert trying.live.refusals(MODEL)[0].version == 3


def test_a_canary_that_is_too_old_for_a_minimum_is_passed_over(serving: Replica) -> None:
    serving.publish(version=2)
    serving.poll()
    serving.point(
        generation=2, version=2, revision=3, canary={"version": 1, "share": 1, "revision": 3}
    )
    serving.poll()
    assert answering(serving) == ("1", "canary")
    assert answering(serving, **{"x-min-model-version": "2"}) == ("2", "live")


def test_a_canary_fulfils_a_minimum_for_its_callers(trying: Replica) -> None:
    assert answering(trying, **{"x-min-model-version": "2"}) == ("2", "canary")


def test_a_rejection_is_cleared_once_the_version_loads(serving: Replica) -> None:
    serving.publish(version=2)
    key = layout.version_file(MODEL, 2, layout.HEADS)
    heads = serving.store.read(key)
    serving.store.put(key, b"rubbish")
    serving.poll()
    serving.poll()
    assert [each.version for each in serving.live.refusals(MODEL)] == [2]
    assert serving.metrics.lags[-1] == (MODEL, 1)
    serving.store.put(key, heads)
    serving.clock.now += 60
    serving.poll()
    assert serving.live.refusals(MODEL) == ()
    assert serving.metrics.lags[-1] == (MODEL, 0)
    assert serving.metrics.swap_seconds[-1] == 60


def test_requests_of_the_live_version_are_scored_by_the_canary(serving: Replica) -> None:
    serving.publish(version=2)
    canary = Canary(version=2, revision=5, share=0, shadow=1)
    serving.point(generation=3, version=1, revision=5, canary=canary)
    serving.poll()
    parts = serving.parts(serving.args)
    serving.app = create_api(parts)

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        for modality in ("text", "image"):
            for item in items(modality, 40):
                body = {"model": MODEL, "input": [item]}
                response = await client.post("/v1/embeddings", json=body)
                assert response.headers["x-model-version"] == "1"
        body = {"model": MODEL, "queries": items("text", 3), "candidates": items("image", 3)}
        await client.post("/v1/similarity", json=body)
        await client.post("/v1/embeddings", json={"model": "scenes@2", "input": items("text", 1)})
        await finished("shadow")
        await parts.canaries.write()
        return response

    serving.run(ask)
    key = layout.observation(MODEL, 5, "replica-1")
    seen = Observation.model_validate_json(serving.store.read(key))
    assert (seen.version, seen.answered, seen.failed) == (2, 1, 0)
    assert 24 <= seen.shadowed <= 81
    assert seen.pairs["image--text"].queries >= seen.shadowed


def test_observations_are_stored_once_the_replica_has_ended(serving: Replica) -> None:
    serving.publish(version=2)
    canary = Canary(version=2, revision=5, share=0, shadow=0)
    serving.point(generation=3, version=1, revision=5, canary=canary)
    serving.poll()
    with TestClient(serving.app, base_url="http://127.0.0.1") as client:
        body = {"model": "scenes@2", "input": items("text", 1)}
        assert client.post("/v1/embeddings", json=body).status_code == 200
    key = layout.observation(MODEL, 5, "replica-1")
    assert Observation.model_validate_json(serving.store.read(key)).answered == 1


KEYS = [f"caller-{number}" for number in range(10_000)]


def chosen(share: float, revision: int = 3, model: str = "scenes") -> set[str]:
    return {key for key in KEYS if routed_to_canary(model, revision, key, share)}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_canary_gets_its_share_of_the_callers(share: float) -> None:
    deviation = (share * (1 - share) / len(KEYS)) ** 0.5
    assert abs(len(chosen(share)) / len(KEYS) - share) < 4 * deviation


def test_no_caller_at_share_zero_and_all_at_one() -> None:
    assert chosen(0) == set()
    assert chosen(1) == set(KEYS)


def test_callers_of_the_canary_stay_when_its_share_grows() -> None:
    assert chosen(0.05) < chosen(0.1) < chosen(0.5)


def test_the_same_key_is_chosen_in_every_process() -> None:
    # Fixed: two releases that choose otherwise would show one caller both versions.
    assert sorted(chosen(0.0005)) == ["caller-6144", "caller-6250", "caller-6983"]


@pytest.mark.parametrize("other", [{"revision": 4}, {"model": "sounds"}])
def test_another_canary_selects_other_callers(other: dict[str, object]) -> None:
    both = chosen(0.1) & chosen(0.1, **other)  # type: ignore[arg-type]
    assert len(both) < 0.02 * len(KEYS)
