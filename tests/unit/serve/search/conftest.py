"""A store and a follower for collections."""

from pathlib import Path

import pytest

from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.search.scene import Scene
from workers.storage.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> FlakyStore:
    return FlakyStore(LocalStore(tmp_path / "store"))


@pytest.fixture
def scene(store: FlakyStore) -> Scene:
    """With version 1 live and no collection."""
    made = Scene(store)
    made.swap(1)
    return made
