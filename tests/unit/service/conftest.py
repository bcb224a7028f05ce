"""A control plane per test, on SQLite in a folder of its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.clock import ScriptedClock
from tests.fakes.control_plane import ControlPlane, open_databases, reopened
from tests.fakes.memory_folder import tmp_path

__all__ = ["tmp_path"]


@pytest.fixture(autouse=True)
def _every_database_is_closed(tmp_path: Path) -> Iterator[None]:
    """Fail the test that leaves one open: from Python 3.13 on, the garbage collector warns in a later test."""
    yield
    assert open_databases(tmp_path) == []


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with one model, `scenes`."""
    plane = ControlPlane(tmp_path)
    plane.create_model()
    yield plane
    plane.close()


@pytest.fixture
def slow_plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane that gives a lost attempt five seconds to end."""
    plane = ControlPlane(tmp_path, lost_attempt_grace_seconds=5)
    plane.create_model()
    yield plane
    plane.close()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of a control plane whose model has that many versions."""
    folder, clock, found = tmp_path_factory.mktemp("published"), ScriptedClock(), {}
    for number, name in enumerate(("one", "two", "three"), start=1):
        plane = ControlPlane(folder / "plane", clock=clock)
        if number == 1:
            plane.create_model()
        plane.run_to_end(plane.post_dataset(name))
        plane.close()
        found[number] = shutil.copytree(folder / "plane", folder / str(number))
    return found


@pytest.fixture
def two(published: dict[int, Path], tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with two versions of `scenes`."""
    with reopened(published[2], tmp_path) as plane:
        yield plane


@pytest.fixture
def three(published: dict[int, Path], tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with three versions of `scenes`; the third one is live."""
    with reopened(published[3], tmp_path) as plane:
        yield plane
