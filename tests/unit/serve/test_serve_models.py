"""The list of models: versions, modalities, and whether stored vectors still fit."""

import asyncio
import dataclasses
from typing import Any

import httpx
import pytest

from cmcl.storage import layout
from tests.fakes.letter_encoder import IDENTITY, LetterEncoders
from tests.fakes.versions import stored_key
from tests.unit.serve.conftest import MODEL, Replica
from tests.unit.serve.test_serve_migrate_route import publish as publish_conditioned
from workers.serve.api.app import create_api
from workers.serve.auth import Caller


def models(replica: Replica) -> list[dict[str, Any]]:
    response = replica.get("/v1/models")
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


def test_a_model_is_listed_with_all_its_fields(serving: Replica) -> None:
    serving.publish(version=1, generation=4, model="another")
    serving.poll()
    data = models(serving)
    assert [each["id"] for each in data] == ["another", "scenes"]
    assert data[0] == {
        "id": "another",
        "object": "model",
        "created": 1795478400,
        "owned_by": "cmcl",
        "version": 1,
        "generation": 4,
        "width": 6,
        "dimensions": [6],
        "modalities": {"image": 5, "text": 4},
        "pairs": ["image--text"],
        "encoders": {
            "text": {
                "name": "letters",
                "title": None,
                "takes": None,
                "matches": None,
                "problem": None,
            }
        },
        "versions": {"live": 1, "loaded": [1], "lineage": [1], "retired": []},
        "compatibility": {},
        "refusal": None,
    }


@pytest.mark.parametrize(
    ("name", "status"), [("missing", 404), ("scenes@7", 404), ("Scenes", 400), ("scenes@0", 400)]
)
def test_what_is_not_there_is_said_in_openais_shape(
    serving: Replica, name: str, status: int
) -> None:
    response = serving.get(f"/v1/models/{name}")
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_versions_in_memory_and_retired_ones_are_listed(serving: Replica) -> None:
    serving.publish(version=2)
    serving.poll()
    serving.publish(version=3)
    serving.poll()
    assert serving.embed(model="scenes@1").status_code == 200
    serving.point(generation=4, version=3, revision=1, retired=(1,))
    serving.poll()
    assert models(serving)[0]["versions"] == {
        "live": 3,
        "loaded": [2, 3],
        "lineage": [3],
        "retired": [1],
    }


def test_a_version_that_cannot_be_loaded_is_listed_with_the_reason(serving: Replica) -> None:
    serving.publish(version=2)
    serving.store.put(stored_key(serving.store, MODEL, 2, layout.HEADS), b"rubbish")
    serving.poll()
    (listed,) = models(serving)
    assert listed["version"] == 1
    refusal = listed["refusal"]
    assert (refusal["version"], refusal["kind"]) == (2, "damaged")
    assert "is not what its manifest promised" in refusal["reason"]
    assert refusal["failures"] >= 1


def test_stored_vectors_are_compared_with_the_live_version_in_the_background(
    replica: Replica,
) -> None:
    publish_conditioned(replica, 1)
    publish_conditioned(replica, 2)
    replica.publish(version=3, generation=3)
    publish_conditioned(replica, 4)

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        response = await client.get("/v1/models/scenes")
        assert response.json()["compatibility"] == {"1": None, "2": None}
        while None in response.json()["compatibility"].values():
            await asyncio.sleep(0.01)
            response = await client.get("/v1/models/scenes")
        return response

    found = replica.run(ask).json()["compatibility"]
    assert set(found) == {"1", "2"}
    assert all(each["image--text"] > 0.1 for each in found.values())


def encoder_of_text(replica: Replica, name: str = "scenes") -> dict[str, Any]:
    encoders: dict[str, dict[str, Any]] = replica.get(f"/v1/models/{name}").json()["encoders"]
    assert encoders.keys() == {"text"}
    return encoders["text"]


def test_an_encoder_that_is_not_configured_here_is_shown_as_a_problem(serving: Replica) -> None:
    shown = encoder_of_text(serving)
    assert (shown["name"], shown["title"], shown["matches"]) == ("letters", None, False)
    assert "is not configured at this endpoint" in shown["problem"]


def test_whether_an_encoder_is_the_one_of_the_features_is_shown_by_version(
    with_encoder: Replica,
) -> None:
    with_encoder.publish(version=2, encoders={"text": IDENTITY})
    other = IDENTITY.model_copy(update={"revision": "b" * 40})
    with_encoder.publish(version=3, encoders={"text": other})
    with_encoder.poll()
    shown = encoder_of_text(with_encoder, "scenes")
    assert shown["matches"] is False
    assert shown["problem"] == f"revision is None, expected {'b' * 40!r}"
    assert encoder_of_text(with_encoder, "scenes@2")["matches"] is True


def test_whether_an_encoder_matches_is_unknown_while_it_is_down(with_encoder: Replica) -> None:
    with_encoder.publish(version=2, encoders={"text": IDENTITY})
    with_encoder.poll()
    assert isinstance(with_encoder.encoders, LetterEncoders)
    with_encoder.encoders.is_down = True
    shown = encoder_of_text(with_encoder)
    assert (shown["matches"], shown["problem"]) == (None, "it is down")


class Known:
    """An authenticator that admits only anna."""

    ready = True

    def authenticate(self, authorization: str | None) -> Caller:
        return Caller("key-of-anna", "anna")


def test_callers_see_their_own_and_shared_models(serving: Replica) -> None:
    serving.publish(version=1, generation=1, model="shared")
    serving.point(generation=1, version=1, revision=1, owner="bert")
    serving.poll()
    assert [each["owned_by"] for each in models(serving)] == ["bert", "cmcl"]
    parts = dataclasses.replace(serving.parts(serving.args), access=Known())
    serving.app = create_api(parts)
    assert [each["id"] for each in models(serving)] == ["shared"]
    assert serving.get("/v1/models/scenes").status_code == 404
    assert serving.get("/v1/models/scenes@1").status_code == 404
