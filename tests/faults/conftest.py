"""One migrated database for all stories, and a server of PostgreSQL for some of them."""

from collections.abc import Iterator

import pytest

from tests.faults.world import Template, fresh_folder, make_template


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    with fresh_folder() as folder:
        yield make_template(folder)
