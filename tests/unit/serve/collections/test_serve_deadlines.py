"""Every wait of a request ends at its deadline; only a write is completed."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import lance
import pytest

from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from tests.fakes.letter_encoder import LetterEncoders
from tests.fakes.slow_store import SlowStore
from tests.fakes.versions import stored_key
from tests.unit.serve.collections.conftest import Searching, opened
from tests.unit.serve.collections.test_collection_routes import image_query, item
from tests.unit.serve.test_serve_migrate_route import publish, vectors

SOON = {"x-request-timeout-ms": "150"}
TEXT = {"modality": "text", "text": "a"}


@pytest.fixture
def slow(tmp_path: Path) -> SlowStore:
    return SlowStore(LocalStore(tmp_path / "store"))


@pytest.fixture
def searching(slow: SlowStore) -> Iterator[Searching]:
    """A replica with three indexed items in the collection `things`."""
    with opened(slow) as replica:
        replica.add("things", [item("image", n) for n in range(3)])
        replica.found("things", 2, query=image_query(1))
        yield replica
        slow.answer.set()


def soon(searching: Searching, method: str, path: str, body: object = None) -> httpx.Response:
    """The response to a request that may take a moment; a hang fails the test."""

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        asked = client.request(method, path, json=body, headers=SOON)
        answer = await asyncio.wait_for(asked, 60)
        # Threads that still wait would hold up the end of this loop.
        slow = searching.store
        assert isinstance(slow, SlowStore)
        slow.answer.set()
        return answer

    return searching.run(use)


def check_late(response: httpx.Response) -> None:
    assert response.status_code == 504, response.text
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("deadline_exceeded", "timeout_error")
    assert error["message"] == "the request was not done within its deadline of 0.15 s"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        (
            "POST",
            "/v1/embeddings",
            {"model": "scenes@2", "modality": "text", "input": [1, 2, 3, 4.5]},
        ),
        ("GET", "/v1/models/scenes@2", None),
    ],
)
def test_a_version_that_does_not_come(
    searching: Searching, slow: SlowStore, method: str, path: str, body: object
) -> None:
    searching.publish(version=2)
    searching.point(generation=3, version=1)
    slow.slow = stored_key(slow, "scenes", 2, layout.HEADS)
    check_late(soon(searching, method, path, body))
    slow.slow = None
    assert searching.run(lambda client: client.request(method, path, json=body)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "scenes", "input": ["a", "b"]}),
        ("/v1/embeddings", {"model": "scenes", "input": [TEXT]}),
        ("/v1/collections/things/search", {"query": TEXT}),
        ("/v1/collections/things/items", {"items": [{**TEXT, "id": "a"}]}),
    ],
)
def test_an_encoder_that_does_not_answer(searching: Searching, path: str, body: object) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    assert isinstance(searching.encoders, LetterEncoders)
    searching.encoders.during = forever
    check_late(soon(searching, "POST", path, body))
    assert searching.encoders.asked == [
        2 if body == {"model": "scenes", "input": ["a", "b"]} else 1
    ]


def test_a_map_whose_moments_do_not_come(searching: Searching, slow: SlowStore) -> None:
    for version in (3, 4):
        publish(searching, version)
    slow.slow = stored_key(slow, "scenes", 3, layout.MEMORY)
    vector = vectors(3, "text", count=1).tolist()
    body = {"model": "scenes", "from_version": 3, "modality": "text", "input": vector}
    check_late(soon(searching, "POST", "/v1/migrate", body))
    assert slow.asked.is_set()
    slow.slow = None
    again = searching.run(lambda client: client.post("/v1/migrate", json=body))
    assert again.status_code == 200, again.text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("GET", "/things", None),
        ("POST", "/things/items", {"items": [item("image", 9)]}),
        ("POST", "/things/items/delete", {"ids": ["image-1"]}),
    ],
)
def test_a_collection_that_cannot_be_read(
    searching: Searching, slow: SlowStore, method: str, path: str, body: object
) -> None:
    slow.slow = layout.collection("things")
    check_late(soon(searching, method, f"/v1/collections{path}", body))


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/things/search"), ("GET", "/things/export?format=parquet")],
)
def test_a_revision_that_is_waited_for(searching: Searching, method: str, path: str) -> None:
    body = {"query": image_query(1)} if method == "POST" else None
    headers = {**SOON, "x-min-collection-revision": "99"}
    check_late(searching.ask(method, path, body, headers))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/things/items", {"items": [item("image", 9)]}),
        ("POST", "/things/items/delete", {"ids": ["image-1"]}),
        ("DELETE", "/things", None),
        ("PUT", "/others", {"model": "scenes"}),
    ],
)
def test_a_write_is_seen_through(
    searching: Searching,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: object,
) -> None:
    asked: list[str] = []

    def slowly(name: str, commit: Callable[..., object]) -> Callable[..., object]:
        def late(*args: object, **kwargs: object) -> object:
            asked.append(name)
            time.sleep(0.3)
            return commit(*args, **kwargs)

        return late

    commit = slowly("commit", lance.LanceDataset.commit)
    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(commit))
    monkeypatch.setattr(lance, "write_dataset", slowly("create", lance.write_dataset))
    response = searching.ask(method, path, body, SOON)
    assert asked
    assert response.status_code == 200, response.text
