"""A control plane whose model has three recorded versions; the third one is live."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane, reopened


@pytest.fixture(scope="session")
def recorded_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    with reopened(recorded_world, tmp_path) as plane:
        yield plane
