"""Control planes with given settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.fakes.control_plane import ControlPlane


class MakePlane(Protocol):
    """A control plane with one model, `scenes`, and these settings."""

    def __call__(self, **settings: object) -> ControlPlane: ...


@pytest.fixture
def make_plane(tmp_path: Path) -> Iterator[MakePlane]:
    """A function that creates a control plane, which is closed after the test."""
    made: list[ControlPlane] = []

    def make(**settings: object) -> ControlPlane:
        made.append(ControlPlane(tmp_path, **settings))  # type: ignore[arg-type]
        made[-1].create_model()
        return made[-1]

    yield make
    for plane in made:
        plane.close()
