"""Every route that takes JSON checks a body, and parses a large one in the background."""

import json
import threading
from typing import Any

import httpx
import msgspec
import pytest

from tests.unit.serve.collections.conftest import Searching
from tests.unit.serve.collections.scene import feature
from workers.serve.api import context

IMAGE = {"modality": "image", "feature": feature("image", 0).tolist()}
VECTORS = {"model": "scenes", "from_version": 1, "modality": "image", "input": [[1.0] * 6]}
ROUTES: list[tuple[str, str, dict[str, object]]] = [
    ("POST", "/v1/embeddings", {"model": "scenes", "input": [IMAGE]}),
    ("POST", "/v1/migrate", VECTORS),
    ("POST", "/v1/models/scenes/held-out/d/search", {"row": 1, "modality": "image"}),
    ("PUT", "/v1/collections/other", {"model": "scenes"}),
    ("POST", "/v1/collections/things/items", {"items": [{**IMAGE, "id": "a"}]}),
    ("POST", "/v1/collections/things/items/delete", {"ids": ["a"]}),
    ("POST", "/v1/collections/things/search", {"query": IMAGE}),
]
every_route = pytest.mark.parametrize(
    ("method", "path", "body"), ROUTES, ids=[path for _, path, _ in ROUTES]
)


@pytest.fixture
def parsed_in(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads in which bodies are parsed."""
    threads: list[threading.Thread] = []
    decode = msgspec.json.decode

    def noted(body: bytes, **kwargs: Any) -> object:
        threads.append(threading.current_thread())
        return decode(body, **kwargs)

    monkeypatch.setattr(msgspec.json, "decode", noted)
    return threads


def send(replica: Searching, method: str, path: str, body: object) -> httpx.Response:
    content = json.dumps(body).encode()
    return replica.run(lambda client: client.request(method, path, content=content))


@every_route
def test_an_unknown_field_is_named(
    shared_search: Searching, method: str, path: str, body: dict[str, object]
) -> None:
    answer = send(shared_search, method, path, {**body, "x": {"a": [[]] * 1000}})
    assert answer.status_code == 400
    assert 'there is no field "x"; permitted are' in answer.json()["error"]["message"]


def test_a_payload_that_is_too_large_is_refused_before_it_is_decoded(
    shared_search: Searching, parsed_in: list[threading.Thread]
) -> None:
    one = {**IMAGE, "id": "a", "payload": {"a": [[]] * 1000}}
    answer = shared_search.ask("POST", "/things/items", {"items": [one]})
    message = "items[0].payload has 4007 bytes; permitted are 100"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)
    assert len(parsed_in) == 1, "the body, and not the payload"


@every_route
def test_a_large_body_is_never_parsed_on_the_event_loop(
    shared_search: Searching,
    parsed_in: list[threading.Thread],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: dict[str, object],
) -> None:
    monkeypatch.setattr(context, "_INLINE_BYTES", 0)
    send(shared_search, method, path, body)
    assert parsed_in
    assert threading.main_thread() not in parsed_in
