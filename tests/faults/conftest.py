"""One migrated database, and one folder, for all scenarios."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.memory_folder import memory_folder
from tests.faults.world import Template, make_template


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    with memory_folder() as folder:
        yield make_template(folder)


@pytest.fixture(scope="session")
def stage() -> Iterator[Path]:
    """The folder in which scenarios run, one after another."""
    with memory_folder() as folder:
        yield folder
