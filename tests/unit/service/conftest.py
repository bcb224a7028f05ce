"""A control plane per test, on SQLite in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """With one model, `scenes`."""
    plane = ControlPlane(tmp_path)
    plane.create_model()
    yield plane
    plane.close()


@pytest.fixture
def patient_plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """One that gives a lost attempt five seconds to end."""
    plane = ControlPlane(tmp_path, lost_attempt_grace_seconds=5)
    plane.create_model()
    yield plane
    plane.close()
