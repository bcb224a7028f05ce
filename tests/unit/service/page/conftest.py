"""A control plane that requires keys, and browsers that look at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.fakes.endpoint import FakeEndpoint, collection
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient
from tests.unit.service.page.browser import Browser
from tests.unit.service.page.trying import ROWS, make_model, open_plane


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with the operator's key."""
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    yield plane
    plane.close()


@pytest.fixture
def operator(guarded: ControlPlane) -> KeyClient:
    """A client of the API with the operator's key."""
    return KeyClient(guarded, ADMIN_KEY)


@pytest.fixture
def browser(guarded: ControlPlane) -> Browser:
    """A browser that is not signed in."""
    return Browser(guarded)


@pytest.fixture
def endpoint() -> FakeEndpoint:
    """With two collections and rows of a dataset."""
    listed = {
        "data": [collection("pictures"), collection("hidden-things", "their-model")],
        "damaged": [],
    }
    fake = FakeEndpoint({"GET /v1/collections": {"object": "list", **listed}})
    fake.answers["GET /v1/collections/pictures"] = collection("pictures")
    fake.answers["GET /v1/collections/hidden-things"] = collection("hidden-things", "their-model")
    fake.answers["GET /v1/models/scenes/held-out/ds-1"] = ROWS
    return fake


@pytest.fixture
def trier(tmp_path: Path, endpoint: FakeEndpoint) -> Iterator[Browser]:
    """A browser at a control plane without keys."""
    plane = open_plane(tmp_path, endpoint)
    make_model(plane)
    yield Browser(plane)
    plane.close()
