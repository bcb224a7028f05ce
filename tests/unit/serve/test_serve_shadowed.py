"""Requests over HTTP are shadowed and counted, and what they answer stays the same."""

import httpx
from fastapi.testclient import TestClient

from cmcl.contract.rollout import Candidate, Observation
from tests.unit.serve.background import finished
from tests.unit.serve.conftest import MODEL, Replica
from tests.unit.serve.test_serve_similarity import items
from workers.serve.api.app import create_api
from workers.storage import layout


def test_requests_of_the_live_version_are_scored_by_the_candidate(serving: Replica) -> None:
    serving.publish(version=2)
    canary = Candidate(version=2, revision=5, share=0, shadow=1)
    serving.point(generation=3, version=1, revision=5, candidate=canary)
    serving.look()
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


def test_what_was_seen_lies_in_the_store_once_the_replica_has_ended(serving: Replica) -> None:
    serving.publish(version=2)
    canary = Candidate(version=2, revision=5, share=0, shadow=0)
    serving.point(generation=3, version=1, revision=5, candidate=canary)
    serving.look()
    with TestClient(serving.app, base_url="http://127.0.0.1") as client:
        body = {"model": "scenes@2", "input": items("text", 1)}
        assert client.post("/v1/embeddings", json=body).status_code == 200
    key = layout.observation(MODEL, 5, "replica-1")
    assert Observation.model_validate_json(serving.store.read(key)).answered == 1
