"""A control plane, a server with prepared answers, and both clients."""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmcl import Client
from tests.architecture.repository import ROOT
from tests.fakes.control_plane import ControlPlane, reopened
from tests.fakes.served_app import served
from tests.unit.client.command_line import Cmcl
from tests.unit.client.either import connected, in_process
from tests.unit.client.rest_server import RestServer, running


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables of the caller's environment."""
    for name in ("CMCL_KEY", "CMCL_URL", "CMCL_MODEL", "CMCL_EMBEDDINGS_URL", "CMCL_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a control plane whose model `scenes` has two versions."""
    folder = tmp_path_factory.mktemp("published-plane")
    plane = ControlPlane(folder)
    plane.create_model()
    for name in ("one", "two"):
        plane.run_to_end(plane.post_dataset(name))
    plane.close()
    return folder


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path)
    yield plane
    plane.close()


@pytest.fixture
def published_plane(published_folder: Path, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane whose model `scenes` has two versions."""
    with reopened(published_folder, tmp_path) as plane:
        yield plane


@pytest.fixture
def server() -> Iterator[RestServer]:
    with running() as server:
        yield server


@pytest.fixture
def kind() -> str:
    """The client from which the other one is generated; every call is tested with both of them."""
    return "awaited"


@pytest.fixture
def client(kind: str, server: RestServer) -> Iterator[Client]:
    """A client of the server with prepared responses."""
    with connected(kind, server.url) as client:
        yield client


@pytest.fixture
def published(kind: str, published_plane: ControlPlane) -> Iterator[Client]:
    """A client of the control plane whose model `scenes` has two versions."""
    with in_process(kind, published_plane.app) as client:
        yield client


@pytest.fixture
def service(kind: str, plane: ControlPlane) -> Iterator[Client]:
    """A client of the control plane."""
    with in_process(kind, plane.app) as client:
        yield client


@pytest.fixture
def cmcl(
    published_plane: ControlPlane,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cmcl]:
    """The command line with `published_plane`."""
    with served(published_plane.app) as url:
        monkeypatch.setenv("CMCL_URL", url)
        monkeypatch.setenv("COLUMNS", "160")
        yield Cmcl(capsys)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A Python whose site-packages have the files of the wheel."""
    python = tmp_path / "venv" / "bin" / "python"
    making = [sys.executable, "-m", "venv", "--without-pip", str(python.parents[1])]
    subprocess.run(making, check=True)
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    shutil.copytree(ROOT / "cmcl", site / "cmcl")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
