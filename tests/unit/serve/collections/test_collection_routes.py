"""Collections over HTTP: writes, search across modalities, and the headers of every response."""

import base64
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest

from tests.unit.serve.collections.conftest import Searching
from tests.unit.serve.collections.scene import feature
from tests.unit.serve.conftest import MODEL
from tests.unit.serve.served_versions import load_version


def item(modality: str, number: int, **more: object) -> dict[str, Any]:
    return {
        "id": f"{modality}-{number}",
        "modality": modality,
        "feature": feature(modality, number).tolist(),
        **more,
    }


def image_query(number: int) -> dict[str, Any]:
    return {"modality": "image", "feature": feature("image", number).tolist()}


def nearest(searching: Searching, version: int, query: dict[str, Any], images: int) -> list[str]:
    """Nearest ids by brute force with that version's heads."""
    heads = load_version(searching.store, MODEL, version).heads
    query_E = _embedded(heads, query["modality"], query["feature"])
    scores = {
        f"image-{n}": float(_embedded(heads, "image", feature("image", n).tolist()) @ query_E)
        for n in range(images)
    }
    return sorted(scores, key=lambda each: -scores[each])


def _embedded(heads: Any, modality: str, row: list[float]) -> np.ndarray:
    import torch

    return heads.embed(modality, torch.tensor([row]))[0].numpy()


def test_a_text_finds_images(searching: Searching) -> None:
    revision = searching.add("things", [item("image", n) for n in range(12)])
    query = {"modality": "text", "feature": feature("text", 3).tolist()}
    found = searching.found("things", revision, query=query, modalities=["image"], top_k=5)
    assert found == nearest(searching, 1, query, 12)[:5]


def test_raw_text_is_encoded_on_its_way_in_and_in_a_query(searching: Searching) -> None:
    texts = [{"id": word, "modality": "text", "text": word} for word in ("aaa", "eee", "iii")]
    revision = searching.add("things", texts)
    for word in ("aaa", "eee", "iii"):
        query = {"modality": "text", "text": word}
        assert searching.found("things", revision, query=query, top_k=1) == [word]


def test_a_feature_may_come_as_base64(searching: Searching) -> None:
    data = base64.b64encode(feature("image", 4).astype("<f4").tobytes()).decode()
    revision = searching.add("things", [{"id": "b", "modality": "image", "feature": data}])
    response = searching.ask(
        *("POST", "/things/search", {"query": image_query(4)}),
        {"x-min-collection-revision": str(revision)},
    )
    hit = response.json()["data"][0]
    assert (hit["id"], hit["payload"]) == ("b", None)
    assert hit["score"] == pytest.approx(1, abs=1e-5)


def test_an_answer_names_version_and_revision(searching: Searching) -> None:
    revision = searching.add("things", [item("image", 0, payload={"n": 1})])
    response = searching.ask(
        *("POST", "/things/search", {"query": image_query(0)}),
        {"x-min-collection-revision": str(revision)},
    )
    assert response.headers["x-model-version"] == "1"
    assert response.headers["x-collection-revision"] == str(revision)
    body = response.json()
    assert (body["model"], body["revision"], body["exact"]) == ("scenes@1", revision, True)
    assert body["data"][0]["payload"] == {"n": 1}


def test_search_follows_a_swap_and_names_the_version(searching: Searching) -> None:
    revision = searching.add("things", [item("image", n) for n in range(12)])
    query = {"modality": "text", "feature": feature("text", 3).tolist()}
    before = searching.found("things", revision, query=query)
    searching.publish(version=2)
    searching.poll()
    response = searching.ask(
        *("POST", "/things/search", {"query": query}), {"x-min-model-version": "2"}
    )
    assert response.headers["x-model-version"] == "2"
    after = [hit["id"] for hit in response.json()["data"]]
    assert before == nearest(searching, 1, query, 12)[:10]
    assert after == nearest(searching, 2, query, 12)[:10]
    assert before != after


def test_no_answer_mixes_versions_in_swaps_under_load(searching: Searching) -> None:
    revision = searching.add("things", [item("image", n) for n in range(12)])
    query = {"modality": "text", "feature": feature("text", 3).tolist()}
    searching.found("things", revision, query=query)
    right = {1: nearest(searching, 1, query, 12)[:10]}
    answers: list[tuple[int, list[str]]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            response = searching.ask("POST", "/things/search", {"query": query})
            found = [hit["id"] for hit in response.json()["data"]]
            answers.append((int(response.headers["x-model-version"]), found))

    def until_answers(number: int) -> None:
        deadline = time.monotonic() + 60
        while not answers or answers[-1][0] != number:
            assert time.monotonic() < deadline, f"version {number} does not answer"
            time.sleep(0.005)

    context = threading.Thread(target=ask, daemon=True)
    context.start()
    until_answers(1)
    for number in range(2, 10):
        searching.publish(version=number)
        right[number] = nearest(searching, number, query, 12)[:10]
        searching.poll()
        until_answers(number)
    stop.set()
    context.join()
    assert {version for version, _ in answers} == set(range(1, 10))
    assert all(found == right[version] for version, found in answers)


def test_a_filter_and_modalities_narrow_what_is_found(searching: Searching) -> None:
    items = [item("image", n, payload={"year": 2000 + n}) for n in range(5)]
    items += [item("text", n, payload={"year": 2000 + n}) for n in range(5)]
    revision = searching.add("things", items)
    wanted = {"field": "year", "range": {"gte": 2003}}
    query = image_query(0)
    found = searching.found("things", revision, query=query, filter=wanted, modalities=["text"])
    assert set(found) == {"text-3", "text-4"}


def test_removed_items_are_not_found(searching: Searching) -> None:
    searching.add("things", [item("image", n) for n in range(3)])
    response = searching.ask("POST", "/things/items/delete", {"ids": ["image-1", "missing"]})
    assert response.json()["rows"] == 2
    found = searching.found("things", response.json()["revision"], query=image_query(1))
    assert set(found) == {"image-0", "image-2"}


def test_a_collection_is_shown_as_it_is_stored_and_searched(searching: Searching) -> None:
    revision = searching.add("things", [item("image", n) for n in range(3)] + [item("text", 1)])
    searching.found("things", revision, query=image_query(1))
    snapshot = searching.ask("GET", "/things").json()
    assert (snapshot["id"], snapshot["model"], snapshot["feature_type"]) == (
        "things",
        MODEL,
        "float32",
    )
    searched = snapshot["searched"]
    assert searched["rows"] == {"image": 3, "text": 1}
    assert (searched["version"], searched["revision"], searched["problem"]) == (1, revision, None)
    assert searching.ask("GET", "").json()["data"] == [snapshot]


def test_making_a_collection_twice_is_the_same_as_once(searching: Searching) -> None:
    again = searching.ask("PUT", "/things", {"model": "scenes"})
    assert (again.status_code, again.json()["revision"]) == (200, 1)
    other = searching.ask("PUT", "/things", {"model": "scenes", "feature_type": "float16"})
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "name_taken"


def test_a_deleted_collection_is_gone(searching: Searching) -> None:
    searching.add("things", [item("image", 1)])
    assert searching.ask("DELETE", "/things").json()["deleted"] is True
    for method, path, body in (
        ("GET", "/things", None),
        ("DELETE", "/things", None),
        ("POST", "/things/items", {"items": [item("image", 1)]}),
        ("POST", "/things/items/delete", {"ids": ["a"]}),
    ):
        check_gone(searching.ask(method, path, body))
    check_gone(until_not_found(searching, "GET", "/things/export?format=parquet"))


def check_gone(response: httpx.Response) -> None:
    code = response.json()["error"]["code"]
    assert (response.status_code, code) == (404, "collection_not_found")


def until_not_found(
    searching: Searching, method: str, path: str, body: object = None
) -> httpx.Response:
    """Wait until the replica has polled and no longer serves it from memory."""
    deadline = time.monotonic() + 60
    while (response := searching.ask(method, path, body)).status_code != 404:
        assert time.monotonic() < deadline, response.text
        time.sleep(0.01)
    return response


def test_a_collection_of_a_deleted_model_says_so(searching: Searching) -> None:
    searching.add("things", [item("image", 1)])
    for key in list(searching.store.keys("models/")):
        searching.store.delete(key)
    for _ in range(5):
        searching.poll()
        searching.clock.now += 60
    query = {"query": image_query(1)}
    response = until_not_found(searching, "POST", "/things/search", query)
    assert "there is no such model" in response.json()["error"]["message"]
    assert searching.ask("GET", "/things").status_code == 200
    assert searching.ask("DELETE", "/things").status_code == 200


def test_a_revision_that_does_not_come_is_not_ready(searching: Searching) -> None:
    searching.app = searching.app_of(
        searching.args.model_copy(update={"min_version_wait_seconds": 0.1})
    )
    searching.add("things", [item("image", 1)])
    for header in ("x-min-collection-revision", "x-min-model-version"):
        response = searching.ask(
            "POST", "/things/search", {"query": image_query(1)}, {header: "99"}
        )
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "collection_not_ready"


def test_an_unavailable_store_rejects_writes_and_keeps_searching(searching: Searching) -> None:
    revision = searching.add("things", [item("image", n) for n in range(3)])
    searching.found("things", revision, query=image_query(1))
    searching.store.broken = "collections/"
    response = searching.ask("POST", "/things/items", {"items": [item("image", 9)]})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
    assert searching.found("things", query=image_query(1))[0] == "image-1"
    searching.store.broken = None


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("PUT", "/Things", {"model": "scenes"}, "collection's name is"),
        ("PUT", "/new", {"model": "scenes@1"}, "a name without a version"),
        ("PUT", "/new", {"model": "scenes", "feature_type": "int8"}, "feature_type is"),
        ("PUT", "/new", {}, "field 'model' is missing"),
        ("POST", "/things/items", {"items": []}, "items has 0 rows; permitted are 1 to 20"),
        ("POST", "/things/items", {"items": [item("image", n) for n in range(21)]}, "21 rows"),
        (
            "POST",
            "/things/items",
            {"items": [item("image", 1), item("image", 1)]},
            "again; permitted is each id once",
        ),
        ("POST", "/things/items", {"items": [{}]}, "missing"),
        ("POST", "/things/items", {"items": [{**item("image", 1), "id": ""}]}, "items[0].id"),
        ("POST", "/things/items", {"items": [{**item("image", 1), "id": "x" * 257}]}, "256"),
        ("POST", "/things/items", {"items": [{**item("image", 1), "id": "a\x00"}]}, "items[0].id"),
        ("POST", "/things/items", {"items": [{**item("image", 1), "name": 1}]}, "id, payload"),
        ("POST", "/things/items", {"items": [item("image", 1, payload=[1])]}, "payload"),
        ("POST", "/things/items", {"items": [item("image", 1, payload={"": 1})]}, "0 characters"),
        ("POST", "/things/items", {"items": [item("image", 1, payload={"a": 10**90})]}, "64-bit"),
        ("POST", "/things/items", {"items": [item("image", 1, payload={"a": "x" * 99})]}, "bytes"),
        ("POST", "/things/items", {"items": [{**item("image", 1), "text": "a"}]}, "one of feature"),
        ("POST", "/things/items", {"items": [{**item("image", 1), "modality": "smell"}]}, "smell"),
        ("POST", "/things/items", {"items": [{**item("image", 1), "modality": "text"}]}, "has 4"),
        ("POST", "/things/items", {"items": [{**item("image", 1), "feature": [0] * 5}]}, "zeros"),
        ("POST", "/things/items", {"items": [{**item("image", 1), "feature": "?"}]}, "base64"),
        ("POST", "/things/items/delete", {"ids": []}, "ids has 0 rows"),
        (
            "POST",
            "/things/items/delete",
            {"ids": [""]},
            'ids[0] is ""; permitted is a string of length >= 1',
        ),
        ("POST", "/things/search", {}, "query and words are missing"),
        ("POST", "/things/search", {"query": image_query(1), "top_k": 0}, "top_k is 0"),
        ("POST", "/things/search", {"query": image_query(1), "top_k": 51}, "1 to 50"),
        ("POST", "/things/search", {"query": image_query(1), "modalities": ["smell"]}, "smell"),
        ("POST", "/things/search", {"query": image_query(1), "modalities": []}, "modalities"),
        ("POST", "/things/search", {"query": image_query(1), "filter": {"a": 1}}, "permitted are"),
        ("POST", "/things/search", {"query": {"modality": "image", "data": "AA=="}}, "no encoder"),
        (
            "GET",
            "/things/export?format=csv",
            None,
            "permitted are parquet, arrow",
        ),
    ],
)
def test_wrong_values_are_rejected_with_a_message(
    shared_search: Searching, method: str, path: str, body: object, words: str
) -> None:
    response = shared_search.ask(method, path, body)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]


def test_nan_in_a_feature_is_refused(shared_search: Searching) -> None:
    data = b'{"items": [{"id": "a", "modality": "image", "feature": [1, 2, NaN, 4, 5]}]}'
    response = shared_search.run(
        lambda client: client.post("/v1/collections/things/items", content=data)
    )
    assert response.status_code == 400
    broken = np.array([1, 2, np.nan, 4, 5], "<f4").tobytes()
    encoded = base64.b64encode(broken).decode()
    items = [item("image", 0), {"id": "a", "modality": "image", "feature": encoded}]
    response = shared_search.ask("POST", "/things/items", {"items": items})
    assert response.status_code == 400
    assert "item 'a' has nan" in response.json()["error"]["message"]


@pytest.mark.parametrize("feature", [[1.0, 2.0, 3.0], base64.b64encode(bytes(12)).decode()])
def test_a_feature_of_another_width_is_named_by_its_item(
    shared_search: Searching, feature: object
) -> None:
    items = [item("image", 0), {"id": "a", "modality": "image", "feature": feature}]
    response = shared_search.ask("POST", "/things/items", {"items": items})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message == "item 'a' has 3 numbers; a feature of modality 'image' has 5"
