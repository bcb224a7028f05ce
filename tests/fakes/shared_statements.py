"""Compiled statements for all SQLite databases of a session, of which nearly every test opens its own.

SQLAlchemy compiles a statement once for each engine. That takes a sixth of the time of such a test.
"""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def shared_statements() -> Iterator[None]:
    """Give the SQLite engines that the control plane opens one dialect and one cache."""
    # Imported here: some sessions run no test of the control plane.
    import sqlalchemy

    from service.database import engine

    # A dialect knows the version of SQLite from the first connection of its engine.
    donor = sqlalchemy.create_engine("sqlite://")
    donor.connect().close()
    donor.dispose()
    cache: dict[Any, Any] = {}

    def create_engine(url: sqlalchemy.URL, **options: Any) -> sqlalchemy.Engine:
        created = sqlalchemy.create_engine(url, **options)
        if created.dialect.name == donor.dialect.name:
            created.dialect = donor.dialect
            created.update_execution_options(compiled_cache=cache)
        return created

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "create_engine", create_engine)
        yield
