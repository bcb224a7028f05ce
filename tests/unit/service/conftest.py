"""A control plane per test, on SQLite in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane, open_databases
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
