"""One migrated database, and one folder, for all stories."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.world import Template, fresh_folder, make_template


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    with fresh_folder() as folder:
        yield make_template(folder)


@pytest.fixture(scope="session")
def stage() -> Iterator[Path]:
    """Where stories play, one after another."""
    with fresh_folder() as folder:
        yield folder
