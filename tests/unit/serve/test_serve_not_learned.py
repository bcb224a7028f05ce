"""A modality that a version has not learned is refused everywhere: its head is the initial one."""

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cmcl.contract.model import ModelSpec
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.letter_encoder import LetterEncoders
from tests.fakes.versions import publish_version, random_heads
from tests.unit.serve.collections.conftest import Searching
from tests.unit.serve.conftest import MODEL, Replica
from tests.unit.serve.exported import unpacked
from workers.serve.settings import ServeSettings

SPEC = ModelSpec.model_validate(
    {
        "width": 6,
        "modalities": {"audio": 3, "image": 5, "text": {"width": 4, "encoder": "letters"}},
    }
)
IMAGE = {"modality": "image", "feature": [1.0, 2, 3, 4, 5]}
TEXT = {"modality": "text", "feature": [1.0, 2, 3, 4]}
RAW_TEXT = {"modality": "text", "text": "a tram"}
PACKED = {"modality": "text", "feature": b64encode(np.ones(4, "<f4").tobytes()).decode()}


def publish(replica: Replica, version: int, *learned: str) -> None:
    heads = random_heads(SPEC, version)
    publish_version(replica.store, MODEL, version, SPEC, heads, version, learned=learned)
    replica.poll()


@pytest.fixture
def searching(store: FlakyStore) -> Iterator[Searching]:
    """Version 1 has learned audio and image, and not text; an empty collection `things`."""
    args = ServeSettings(store=store.uri, min_version_wait_seconds=60)
    replica = Searching(store, args, encoders=LetterEncoders())
    publish(replica, 1, "audio", "image")
    replica.open()
    try:
        assert replica.ask("PUT", "/things", {"model": MODEL}).status_code == 200
        yield replica
    finally:
        replica.close()


def post(replica: Replica, path: str, body: object) -> httpx.Response:
    return replica.run(lambda client: client.post(path, content=json.dumps(body).encode()))


def embeddings(*items: object, **fields: object) -> tuple[str, object]:
    return "/v1/embeddings", {"model": MODEL, "input": items, **fields}


REQUESTS: dict[str, tuple[str, object]] = {
    "features": embeddings([1.0, 2, 3, 4], modality="text"),
    "texts": embeddings("a tram", modality="text"),
    "items": embeddings(TEXT),
    "packed items": embeddings(PACKED),
    "raw items": embeddings(IMAGE, RAW_TEXT),
    "search": ("/v1/collections/things/search", {"query": RAW_TEXT}),
    "search among": ("/v1/collections/things/search", {"query": IMAGE, "modalities": ["text"]}),
    "new items": ("/v1/collections/things/items", {"items": [{"id": "a", **RAW_TEXT}]}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_it_is_refused_and_the_message_says_what_was_learned(
    searching: Searching, name: str
) -> None:
    check_refused(post(searching, *REQUESTS[name]))


def check_refused(response: httpx.Response) -> None:
    assert response.status_code == 409, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == "modality_not_learned"
    for words in ("scenes@1", "'text'", "audio, image", "Post a dataset"):
        assert words in error["message"]


def test_it_is_refused_again_after_its_only_dataset_was_unlearned(searching: Searching) -> None:
    publish(searching, 2, "audio", "image", "text")
    name = "scenes@2"
    assert searching.embed(model=name, modality="text", input=[1.5, 2, 3, 4]).status_code == 200
    publish(searching, 3, "audio", "image")
    assert searching.embed(modality="text", input=[1.5, 2, 3, 4]).status_code == 409
    assert searching.embed(model=name, modality="text", input=[1.5, 2, 3, 4]).status_code == 200


def test_stored_items_of_it_are_counted_and_found_again_once_it_is_learned(
    searching: Searching,
) -> None:
    publish(searching, 2, "audio", "image", "text")
    items = [{"id": "i", **IMAGE}, {"id": "t", **TEXT}, {"id": "u", **TEXT}]
    revision = searching.add("things", items)

    def searched(version: int) -> dict[str, Any]:
        headers = {"x-min-model-version": str(version), "x-min-collection-revision": str(revision)}
        answer = searching.ask("POST", "/things/search", {"query": IMAGE}, headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = searching.ask("GET", "/things").json()["searched"]
        return {**found, "ids": sorted(hit["id"] for hit in answer.json()["data"])}

    assert searched(2)["ids"] == ["i", "t", "u"]
    publish(searching, 3, "audio", "image")
    without = searched(3)
    assert without["ids"] == ["i"]
    assert (without["rows"], without["not_learned"]) == ({"image": 1}, {"text": 2})
    publish(searching, 4, "audio", "image", "text")
    again = searched(4)
    assert again["ids"] == ["i", "t", "u"]
    assert (again["rows"], again["not_learned"]) == ({"image": 1, "text": 2}, {})


@pytest.mark.parametrize("format_", ["safetensors", "onnx"])
def test_the_card_of_an_export_names_it(searching: Searching, tmp_path: Path, format_: str) -> None:
    card = (unpacked(searching, format_, tmp_path) / "README.md").read_text()
    assert "**scenes@1 has not learned text.**" in card
    assert "features of audio, image into one space" in card
