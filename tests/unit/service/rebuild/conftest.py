"""A control plane whose model has three recorded versions; the third one is live."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane


@pytest.fixture(scope="session")
def recorded_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published once: copying is faster than publishing."""
    folder = tmp_path_factory.mktemp("recorded")
    made = ControlPlane(folder)
    made.create_model()
    for name in ("one", "two", "three"):
        made.run_to_end(made.post_dataset(name))
    made.record()
    made.close()
    return folder


@pytest.fixture
def plane(recorded_world: Path, tmp_path: Path) -> Iterator[ControlPlane]:
    """A copy in its own folder."""
    shutil.copytree(recorded_world, tmp_path, dirs_exist_ok=True)
    plane = ControlPlane(tmp_path)
    plane.clock.advance(3600)
    yield plane
    plane.close()
