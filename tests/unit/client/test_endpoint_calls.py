"""Requests to the embeddings endpoint, and what is read from its responses."""

import base64
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cmcl import Client, CmclError, Query
from cmcl.client import InvalidArgument, Item, ServedModel, WriteResult
from tests.fakes.responses import body
from tests.unit.client.rest_server import Answer, Asked, RestServer


def test_raw_items_are_embedded_by_their_encoder(server: RestServer, client: Client) -> None:
    vector = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    server.always((200, {"model": "scenes@3", "data": [{"embedding": vector}] * 2}))
    items = [Query("image", data=b"PNG"), Query("image", [2.0])]
    assert len(client.embed("scenes", "image", items).vectors) == 2
    client.embed("scenes", "place", [Query("place", numbers=(48.85, 2.35))] * 2)
    assert all("modality" not in asked.body for asked in server.asked), "each item names its own"
    picture, place = (asked.body["input"] for asked in server.asked)
    assert picture == [
        {"modality": "image", "data": base64.b64encode(b"PNG").decode()},
        {"modality": "image", "feature": base64.b64encode(struct.pack("<f", 2.0)).decode()},
    ]
    assert place == [{"modality": "place", "numbers": [48.85, 2.35]}] * 2


def test_a_query_has_one_content(server: RestServer, client: Client) -> None:
    with pytest.raises(InvalidArgument, match="exactly one of feature, text, data and numbers"):
        client.embed("scenes", "place", [Query("place", [1.0], numbers=(48.85, 2.35))])
    assert server.asked == []


def test_embeddings_are_the_floats_that_were_sent_and_name_their_version(
    server: RestServer, client: Client
) -> None:
    vectors = [[0.5, -1.0], [0.1, 3e-8]]
    data = [base64.b64encode(struct.pack("<2f", *vector)).decode() for vector in vectors]
    answer = {"model": "scenes@12", "data": [{"embedding": text} for text in data]}
    server.always((200, answer))
    rows: Any = [(1.0, 2.0), np.array([3.0, 4.0], np.float32)]
    embeddings = client.embed("scenes", "image", rows)
    assert embeddings.version == 12
    assert embeddings.vectors == [pytest.approx(vector, rel=1e-7) for vector in vectors]
    assert server.asked[0].body["input"] == [[1.0, 2.0], [3.0, 4.0]]


def test_embedding_waits_at_the_endpoint_for_a_version(server: RestServer, client: Client) -> None:
    vector = base64.b64encode(struct.pack("<f", 1.0)).decode()
    server.always((200, {"model": "scenes@3", "data": [{"embedding": vector}]}))
    client.embed("scenes", "image", [[1.0]], min_version=3)
    client.embed("scenes", "image", [[1.0]])
    waits, does_not = (asked.headers for asked in server.asked)
    assert waits["x-min-model-version"] == "3"
    assert "x-min-model-version" not in does_not


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"model": "scenes", "data": []},
        {"model": 1, "data": []},
        {"model": "a@1", "data": [{"embedding": "?"}]},
        {"model": "a@1", "data": [{"embedding": "AAA="}]},
    ],
)
def test_embeddings_of_unexpected_form_are_an_error(
    server: RestServer, client: Client, answer: object
) -> None:
    server.always((200, answer))
    with pytest.raises(CmclError, match="unexpected form"):
        client.embed("scenes", "image", [[1.0]])


TIMEOUT = {"error": {"message": "no result for 32 items; send fewer", "code": "encoder_timeout"}}


def busy(most: int, version: int = 3) -> Callable[[Asked], Answer]:
    """An endpoint whose encoder finishes so many texts in time. The vector of a text is its length."""

    def answer(asked: Asked) -> Answer:
        texts = asked.body["input"]
        if len(texts) > most:
            return 503, TIMEOUT, {"Retry-After": "1"}
        packed = [base64.b64encode(struct.pack("<f", len(text))).decode() for text in texts]
        data = [{"embedding": each} for each in packed]
        return 200, {"model": f"scenes@{version}", "data": data}

    return answer


def test_raw_items_that_are_not_encoded_in_time_are_sent_fewer_at_once(
    server: RestServer, client: Client
) -> None:
    server.answer = busy(most=10)
    found = client.embed("scenes", "text", ["x" * length for length in range(1, 71)])
    assert [vector[0] for vector in found.vectors] == list(range(1, 71))
    sizes = [len(asked.body["input"]) for asked in server.asked]
    assert sizes[:3] == [32, 16, 8], "each half as large, and none of them repeated"
    assert {asked.body["model"] for asked in server.asked[3:]} == {"scenes@3"}, "of one version"
    server.asked.clear()
    client.embed("scenes", "text", ["x"] * 20)
    assert len(server.asked[0].body["input"]) <= 16, "the size is kept for the next call"


def test_many_raw_items_are_sent_in_parts_that_grow_while_they_are_fast(
    server: RestServer, client: Client
) -> None:
    server.answer = busy(most=4096)
    assert len(client.embed("scenes@3", "text", ["x"] * 200).vectors) == 200
    assert [len(asked.body["input"]) for asked in server.asked] == [32, 64, 104]
    assert {asked.body["model"] for asked in server.asked} == {"scenes@3"}


def test_one_raw_item_that_is_not_encoded_in_time_is_tried_again(
    server: RestServer, client: Client
) -> None:
    server.always((503, TIMEOUT, {"Retry-After": "0"}), busy(1)(Asked("", "", {"input": ["abc"]})))
    assert client.embed("scenes", "text", "abc").vectors == [[3.0]]
    server.always((503, TIMEOUT, {"Retry-After": "0"}))
    with pytest.raises(CmclError, match="send fewer") as caught:
        client.embed("scenes", "text", "abc")
    assert (caught.value.status, caught.value.code) == (503, "encoder_timeout")


def test_raw_items_of_a_collection_are_added_fewer_at_once(
    server: RestServer, client: Client
) -> None:
    def answer(asked: Asked) -> Answer:
        rows = len(asked.body["items"])
        if rows > 10:
            return 503, TIMEOUT, {"Retry-After": "1"}
        return 200, body(WriteResult, rows=rows)

    server.answer = answer
    client.add_items("things", [Item(str(n), "image", data=b"PNG") for n in range(50)])
    done = [asked for asked in server.asked if len(asked.body["items"]) <= 10]
    ids = [item["id"] for asked in done for item in asked.body["items"]]
    assert ids == [str(n) for n in range(50)]
    keys = [asked.headers["idempotency-key"] for asked in server.asked]
    assert len(set(keys)) == len(keys)


MIGRATION = {
    "from_version": 1,
    "predicted_error": 0.03,
    "error_on_rows": 0.02,
    "rank": 256,
    "condition": 12.5,
    "exact": False,
}


def test_migrated_vectors_come_with_the_error_to_expect(server: RestServer, client: Client) -> None:
    vector = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    answer = {"model": "scenes@3", "data": [{"embedding": vector}], "migration": MIGRATION}
    server.always((200, answer))
    moved = client.migrate("scenes@3", "image", [[1.0, 2.0]], from_version=1, most_error=0.2)
    assert moved.vectors == [[0.5, -1.0]]
    assert (moved.version, moved.from_version) == (3, 1)
    assert (moved.predicted_error, moved.exact, moved.rank) == (0.03, False, 256)
    client.migrate("scenes", "image", [[1.0, 2.0]], from_version=1)
    exact, live = (each.body for each in server.asked)
    assert (exact["model"], exact["to_version"], exact["most_error"]) == ("scenes", 3, 0.2)
    assert "to_version" not in live


SERVED = body(
    ServedModel,
    id="scenes",
    version=3,
    width=6,
    modalities={"image": 5},
    encoders={},
    versions={"live": 3, "loaded": [1, 3], "lineage": [1, 3], "retired": [2]},
    compatibility={"1": {"image--text": 0.01}},
    refusal=None,
)


def test_served_models_are_read_completely(server: RestServer, client: Client) -> None:
    server.always((200, {"object": "list", "data": [SERVED]}))
    (model,) = client.served_models()
    assert (model.id, model.versions.retired, model.versions.live) == ("scenes", [2], 3)
    assert model.compatibility == {"1": {"image--text": 0.01}}
    server.always((200, SERVED))
    assert client.served_model("scenes@3") == model
    assert [each.path for each in server.asked] == ["/v1/models", "/v1/models/scenes%403"]
