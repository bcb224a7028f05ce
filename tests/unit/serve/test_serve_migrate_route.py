"""Stored vectors of one version are migrated to another by the endpoint, or rejected with a message."""

import asyncio
import base64
import json
import threading
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from cmcl.contract.model import ModelSpec
from cmcl.storage import layout
from tests.fakes.versions import publish_version, random_heads, stored_key
from tests.unit.serve.conftest import MODEL, Replica
from workers.model.heads import ModalityHeads
from workers.nullspace.conditioning import Conditioning
from workers.serve.api import context
from workers.serve.api import migrate as migrate_route
from workers.serve.api.wire import vectors as wire_vectors
from workers.serve.api.wire.vectors import RAW, checked

# Embeddings wider than what the head of texts reads, and narrower than what that of images does.
SPEC = ModelSpec(width=6, modalities={"image": 8, "text": 4}, lift=0)


def heads(version: int, first_dataset: int = 0) -> ModalityHeads:
    generator = torch.Generator().manual_seed(first_dataset)
    made = {
        modality: Conditioning(
            torch.randn(width, generator=generator), torch.randn(width, width, generator=generator)
        )
        for modality, width in SPEC.widths.items()
    }
    return random_heads(SPEC, version).conditioned(made)


def publish(replica: Replica, version: int, first_dataset: int = 0) -> None:
    made = heads(version, first_dataset)
    publish_version(replica.store, MODEL, version, SPEC, made, generation=version)
    replica.poll()


@pytest.fixture
def grown(replica: Replica) -> Replica:
    """Versions 1 and 2 of one lineage."""
    publish(replica, 1)
    publish(replica, 2)
    return replica


def vectors(version: int, modality: str, count: int = 3) -> np.ndarray:
    """Unit vectors of the same features by that version."""
    generator = torch.Generator().manual_seed(9)
    raw_BF = torch.randn(count, SPEC.widths[modality], generator=generator)
    embeddings_BE: np.ndarray = heads(version).embed(modality, raw_BF).numpy()
    return embeddings_BE


def migrate(replica: Replica, **changes: object) -> httpx.Response:
    fields = {
        "model": MODEL,
        "from_version": 1,
        "to_version": 2,
        "modality": "text",
        "input": vectors(1, "text").tolist(),
        **changes,
    }
    body = json.dumps({name: value for name, value in fields.items() if value is not None})
    return replica.run(lambda client: client.post("/v1/migrate", content=body))


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_roomy_heads_are_migrated_exactly(grown: Replica) -> None:
    response = migrate(grown)
    assert response.status_code == 200, response.text
    body = response.json()
    got = np.array([each["embedding"] for each in body["data"]])
    np.testing.assert_allclose(got, vectors(2, "text"), atol=1e-4)
    assert body["model"] == "scenes@2"
    migration = body["migration"]
    assert (migration["from_version"], migration["to_version"], migration["modality"]) == (
        1,
        2,
        "text",
    )
    assert (migration["exact"], migration["rank"]) == (True, 5)
    assert migration["predicted_error"] < 1e-4
    assert migration["error_on_rows"] < 1e-4
    assert migration["condition"] >= 1
    headers = response.headers
    assert (headers["x-model-version"], headers["x-from-version"]) == ("2", "1")
    assert (headers["x-exact"], headers["x-rank"]) == ("true", "5")
    assert float(headers["x-predicted-error"]) == pytest.approx(migration["predicted_error"])
    assert float(headers["x-error-on-rows"]) == pytest.approx(migration["error_on_rows"])


def test_every_form_of_body_gives_the_same_vectors(grown: Replica) -> None:
    stored = vectors(1, "text")
    texts = [base64.b64encode(row.tobytes()).decode() for row in stored]
    parameters: dict[str, Any] = {
        "model": MODEL,
        "from_version": 1,
        "to_version": 2,
        "modality": "text",
    }
    headers = {"content-type": RAW, "accept": RAW}
    raw = grown.run(
        lambda client: client.post(
            "/v1/migrate", params=parameters, content=stored.tobytes(), headers=headers
        )
    )
    assert raw.status_code == 200, raw.text
    got = np.frombuffer(raw.content, "<f4").reshape(3, 6)
    assert (raw.headers["x-rows"], raw.headers["x-width"]) == ("3", "6")
    for response in (
        migrate(grown, input=stored.tolist()),
        migrate(grown, input=texts),
        migrate(grown, input=texts, encoding_format="base64"),
    ):
        assert response.status_code == 200, response.text
        data = [each["embedding"] for each in response.json()["data"]]
        if isinstance(data[0], str):
            data = [np.frombuffer(base64.b64decode(text), "<f4") for text in data]
        np.testing.assert_allclose(np.array(data), got, atol=1e-6)


def test_an_error_above_what_is_permitted_is_refused(grown: Replica) -> None:
    stored = vectors(1, "image").tolist()
    error = error_of(migrate(grown, modality="image", input=stored, most_error=0.01), 422)
    assert (error["code"], error["param"]) == ("too_inexact", "most_error")
    assert "rank 6 of 6" in error["message"]
    assert "more than the permitted 0.01: re-encode its items" in error["message"]
    assert migrate(grown, modality="image", input=stored, most_error=1).status_code == 200


def test_versions_of_other_first_datasets_are_refused(grown: Replica) -> None:
    publish(grown, 3, first_dataset=1)
    error = error_of(migrate(grown, to_version=3), 422)
    assert (error["code"], error["param"]) == ("other_conditioning", "from_version")
    assert "versions 1 and 3 have conditioned 'text' by different" in error["message"]


@pytest.mark.parametrize(
    ("first", "second"), [("audio image", "audio image text"), ("audio image text", "audio image")]
)
def test_a_modality_that_either_version_has_not_learned_is_refused(
    replica: Replica, first: str, second: str
) -> None:
    spec = ModelSpec(width=6, modalities={"image": 5, "text": 4, "audio": 3}, lift=0)
    for version, learned in enumerate((first, second), 1):
        made = random_heads(spec, version)
        publish_version(
            replica.store, MODEL, version, spec, made, generation=version, learned=learned.split()
        )
        replica.poll()
    text = error_of(migrate(replica, modality="text"), 409)
    assert (text["code"], text["param"]) == ("modality_not_learned", "modality")


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"model": "scenes@2"}, 400, "permitted is a name without a version"),
        ({"model": "missing"}, 404, "there is no model 'missing'"),
        ({"from_version": 7}, 404, "has no published version 7"),
        ({"from_version": 0}, 400, "from_version is 0; permitted is"),
        ({"from_version": None}, 400, "the field 'from_version' is missing"),
        ({"to_version": "2"}, 400, 'to_version is "2"; permitted is a whole number'),
        ({"most_error": 1.5}, 400, "most_error is 1.5; permitted is a number <= 1.0"),
        ({"modality": "smell"}, 400, 'modality is "smell"; this model has image, text'),
        ({"input": []}, 400, "input"),
        ({"input": [1.0] * 5}, 400, "row 0 has 5 numbers; a vector of scenes@1 has 6"),
        ({"input": [[1.0] * 6, [0.0] * 6]}, 400, "input row 1 is all zeros"),
        (
            {"input": ["AAAA"]},
            400,
            "row 0 has 3 bytes, no whole float32 numbers; a vector of scenes@1 has 6",
        ),
        ({"input": [[1.0] * 6] * 51}, 400, "input has 51 rows; permitted are 1 to 50"),
        ({"vectors": 1}, 400, 'there is no field "vectors"'),
    ],
)
def test_invalid_requests_are_rejected_with_a_message(
    grown: Replica, changes: dict[str, object], status: int, words: str
) -> None:
    assert words in error_of(migrate(grown, **changes), status)["message"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"from_version": "x"}, 'from_version is "x"'),
        ({"from_version": "9" * 5000}, 'from_version is "99'),
        ({"most_error": "9" * 5000}, 'most_error is "99'),
        ({"dtype": "int8"}, 'dtype is "int8"'),
        ({"normalize": "true"}, 'there is no field "normalize"'),
    ],
)
def test_invalid_parameters_are_rejected_with_a_message(
    grown: Replica, parameters: dict[str, str], words: str
) -> None:
    asked = {"model": MODEL, "from_version": "1", "modality": "text", **parameters}
    response = grown.run(
        lambda client: client.post(
            "/v1/migrate",
            params=asked,
            content=vectors(1, "text").tobytes(),
            headers={"content-type": RAW},
        )
    )
    assert words in error_of(response, 400)["message"]


def test_rows_of_a_large_body_are_never_read_on_the_event_loop(
    grown: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return checked(*args)

    monkeypatch.setattr(context, "_INLINE_BYTES", 0)
    for module in (migrate_route, wire_vectors):
        monkeypatch.setattr(module, "checked", noted)
    stored = vectors(1, "text")
    texts = [base64.b64encode(row.tobytes()).decode() for row in stored]
    for given in (stored.tolist(), texts):
        assert migrate(grown, input=given).status_code == 200
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def memory_reads(replica: Replica) -> int:
    calls = list(replica.store.calls)
    return calls.count(stored_key(replica.store, MODEL, 1, layout.MEMORY))


def test_requests_at_the_same_time_share_one_map(grown: Replica) -> None:
    before = memory_reads(grown)

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        body = {"model": MODEL, "from_version": 1, "modality": "text"}
        vector = {"input": vectors(1, "text").tolist()}
        answers = await asyncio.gather(
            *(client.post("/v1/migrate", json={**body, **vector}) for _ in range(5))
        )
        assert {answer.status_code for answer in answers} == {200}
        return await client.post("/v1/migrate", json={**body, **vector})

    assert grown.run(ask).status_code == 200
    assert memory_reads(grown) == before + 1


def test_an_unavailable_store_is_retried(grown: Replica) -> None:
    grown.store.broken = stored_key(grown.store, MODEL, 1, layout.MEMORY)
    error = error_of(migrate(grown), 503)
    assert "the moments of scenes@1 are unavailable" in error["message"]
    grown.store.broken = None
    assert migrate(grown).status_code == 200


def test_moments_that_fail_their_checks_are_reported(grown: Replica) -> None:
    grown.store.put(stored_key(grown.store, MODEL, 1, layout.MEMORY), b"rubbish")
    error = error_of(migrate(grown), 500)
    assert (error["code"], error["param"]) == ("version_damaged", "from_version")
