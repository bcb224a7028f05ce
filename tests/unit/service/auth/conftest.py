"""A control plane that requires keys."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane shared by all tests of a file whose requests are all rejected."""
    plane = ControlPlane(tmp_path_factory.mktemp("untouched"), auth="on", admin_key=ADMIN_KEY)
    yield plane
    plane.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with the operator's key."""
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    yield plane
    plane.close()


@pytest.fixture
def operator(guarded: ControlPlane) -> KeyClient:
    """A client with the operator's key."""
    return KeyClient(guarded, ADMIN_KEY)
