"""A control plane whose model has three versions, all of it recorded; the third one answers."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane


@pytest.fixture(scope="session")
def recorded_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: to publish takes longer than to copy what was published."""
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
    """In a folder of its own."""
    shutil.copytree(recorded_world, tmp_path, dirs_exist_ok=True)
    plane = ControlPlane(tmp_path)
    plane.clock.advance(3600)
    yield plane
    plane.close()
