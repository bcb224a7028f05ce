"""Small folders of all sources, written once."""

from pathlib import Path

import pytest

from benchmarks.paper.tiny import Counts, write_tiny

COUNTS = Counts(train=8, test=8)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not change it: copy a source from it."""
    return write_tiny(tmp_path_factory.mktemp("paper") / "root", COUNTS)
