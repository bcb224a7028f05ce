"""A collection behind Ray Serve follows a hot swap: no response mixes two versions."""

import threading
import time
from collections.abc import Sequence

import httpx
import torch

from cmcl.contract.model import ModelSpec
from cmcl.storage.object_store import ObjectStore
from tests.fakes.versions import publish_version, random_heads

MODEL = "searched"
# Other tests use this endpoint too: a name of its own.
COLLECTION = "follows-each-swap"
SPEC = ModelSpec(width=16, modalities={"image": 12, "text": 8})
ROWS, VERSIONS = 50, 3
SECONDS = 120.0
QUERY = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(2))


def publish(store: ObjectStore, version: int) -> None:
    publish_version(store, MODEL, version, SPEC, random_heads(SPEC, version), generation=version)


def search(client: httpx.Client) -> httpx.Response:
    query = {"modality": "text", "feature": QUERY[0].tolist()}
    return client.post(f"/v1/collections/{COLLECTION}/search", json={"query": query, "top_k": ROWS})


def assert_of_one_version(response: httpx.Response) -> int:
    """Check every score against the version that the response names; return that version."""
    assert response.status_code == 200, response.text
    version = int(response.headers["x-model-version"])
    heads = random_heads(SPEC, seed=version)
    expected = (heads.embed("image", IMAGES) @ heads.embed("text", QUERY).mT)[:, 0]
    scores = {hit["id"]: hit["score"] for hit in response.json()["data"]}
    got = torch.tensor([scores[f"i{number}"] for number in range(ROWS)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    return version


def wait_for(client: httpx.Client, version: int) -> None:
    deadline = time.monotonic() + SECONDS
    while assert_of_one_version(search(client)) != version:
        assert time.monotonic() < deadline, f"version {version} does not search"


def wait_until_answered_by(version: int, answers: Sequence[httpx.Response]) -> None:
    deadline = time.monotonic() + SECONDS
    while all(answer.headers.get("x-model-version") != str(version) for answer in list(answers)):
        assert time.monotonic() < deadline, f"no request was answered by version {version}"
        time.sleep(0.01)


def fill(client: httpx.Client) -> None:
    """Add rows. On a busy machine a new model may be seen later than a request waits for it."""
    deadline = time.monotonic() + SECONDS
    body = {"model": MODEL}
    while (made := client.put(f"/v1/collections/{COLLECTION}", json=body)).status_code not in (
        200,
        201,
    ):
        assert time.monotonic() < deadline, made.text
        time.sleep(0.1)
    items = [
        {"id": f"i{number}", "modality": "image", "feature": row.tolist()}
        for number, row in enumerate(IMAGES)
    ]
    added = client.post(f"/v1/collections/{COLLECTION}/items", json={"items": items})
    assert added.status_code == 200, added.text
    seen = {"x-min-collection-revision": added.headers["x-collection-revision"]}
    client.headers.update(seen)


def test_search_follows_each_swap_and_no_answer_is_of_two_versions(
    serve_url: str, store: ObjectStore
) -> None:
    publish(store, 1)
    stop = threading.Event()
    answers: list[httpx.Response] = []
    with httpx.Client(base_url=serve_url, timeout=SECONDS) as client:
        fill(client)

        def search_all_the_time() -> None:
            with httpx.Client(base_url=serve_url, timeout=SECONDS) as own:
                own.headers.update(client.headers)
                while not stop.is_set():
                    answers.append(search(own))

        wait_for(client, 1)
        searching = threading.Thread(target=search_all_the_time)
        searching.start()
        try:
            for version in range(2, VERSIONS + 1):
                publish(store, version)
                wait_for(client, version)
                wait_until_answered_by(version, answers)
        finally:
            stop.set()
            searching.join()
        shown = client.get(f"/v1/collections/{COLLECTION}").json()["searched"]
    assert (shown["version"], shown["rows"]) == (VERSIONS, {"image": ROWS})
    versions_seen = {assert_of_one_version(answer) for answer in answers}
    assert versions_seen >= set(range(2, VERSIONS + 1))
