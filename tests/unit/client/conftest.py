"""A control plane, a server with prepared answers, and both clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl import Client
from tests.fakes.control_plane import ControlPlane
from tests.unit.client.either import KINDS, connected, in_process
from tests.unit.client.rest_server import RestServer, running


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the environment of whoever runs the tests must not matter."""
    for name in ("CMCL_KEY", "CMCL_URL", "CMCL_MODEL", "CMCL_EMBEDDINGS_URL", "CMCL_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path)
    yield plane
    plane.close()


@pytest.fixture
def server() -> Iterator[RestServer]:
    with running() as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(kind: str, server: RestServer) -> Iterator[Client]:
    """To the server with prepared answers."""
    with connected(kind, server.url) as client:
        yield client


@pytest.fixture
def service(kind: str, plane: ControlPlane) -> Iterator[Client]:
    """To the control plane."""
    with in_process(kind, plane.app) as client:
        yield client
