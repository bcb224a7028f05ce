"""A store, a collections follower, and a replica that serves collections."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.letter_encoder import LetterEncoders
from tests.unit.serve.collections.scene import Scene
from tests.unit.serve.conftest import Replica
from workers.serve.api.app import create_api
from workers.serve.auth import Access, AllowAll, Caller
from workers.serve.settings import ServeSettings


@pytest.fixture
def store(tmp_path: Path) -> FlakyStore:
    return FlakyStore(LocalStore(tmp_path / "store"))


@pytest.fixture
def scene(store: FlakyStore) -> Scene:
    """A scene with version 1 live and without collections."""
    made = Scene(store)
    made.swap(1)
    return made


class NamedCallers:
    """The key `alice` gives access to the collections of owner alice; no key gives access to all."""

    @property
    def ready(self) -> bool:
        return True

    def authenticate(self, authorization: str | None) -> Caller:
        return Caller(authorization or "", authorization)


class Searching(Replica):
    """A replica with collections and the follower's real threads."""

    access: Access = AllowAll()

    def open(self) -> None:
        self.collections.follower.start()
        self.app = self.app_of(self.args)

    def close(self) -> None:
        self.collecting.end()

    def app_of(self, args: ServeSettings) -> ASGIApp:
        parts = replace(self.parts(args), access=self.access)
        return create_api(parts)

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] = {}
    ) -> httpx.Response:
        content = None if body is None else json.dumps(body).encode()
        address = f"/v1/collections{path}"
        return self.run(
            lambda client: client.request(method, address, content=content, headers=headers)
        )

    def add(self, name: str, items: list[dict[str, Any]]) -> int:
        """Add rows and return their revision."""
        response = self.ask("POST", f"/{name}/items", {"items": items})
        assert response.status_code == 200, response.text
        return int(response.json()["revision"])

    def found(self, name: str, revision: int = 0, **body: object) -> list[str]:
        """Search, once this replica has read that revision; return ids."""
        headers = {"x-min-collection-revision": str(revision)} if revision else {}
        response = self.ask("POST", f"/{name}/search", body, headers)
        assert response.status_code == 200, response.text
        return [hit["id"] for hit in response.json()["data"]]


@contextmanager
def opened(store: FlakyStore) -> Iterator[Searching]:
    """A replica with version 1 live, a text encoder, and an empty collection `things`."""
    args = ServeSettings(
        store=store.uri,
        max_rows=20,
        min_version_wait_seconds=60,
        max_top_k=50,
        max_payload_bytes=100,
        max_collection_rows=60,
        max_searched_rows=80,
        max_collections=3,
    )
    replica = Searching(store, args)
    replica.encoders = LetterEncoders()
    replica.publish(version=1)
    replica.poll()
    replica.open()
    try:
        assert replica.ask("PUT", "/things", {"model": "scenes"}).status_code == 200
        yield replica
    finally:
        replica.close()


@pytest.fixture(scope="module")
def shared_search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searching]:
    """The same, for the tests of a module that change nothing in it."""
    with opened(FlakyStore(LocalStore(tmp_path_factory.mktemp("store")))) as replica:
        yield replica


@pytest.fixture
def searching(store: FlakyStore) -> Iterator[Searching]:
    with opened(store) as replica:
        yield replica
