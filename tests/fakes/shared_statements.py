"""Compiled statements for all databases of a session, of which nearly every test opens its own.

SQLAlchemy compiles a statement once for each engine, which takes a sixth of the time of such a test.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import URL, Dialect, Engine

from service.database import engine


@pytest.fixture(scope="session", autouse=True)
def shared_statements() -> Iterator[None]:
    """Give the SQLite engines of the session one dialect and one cache."""
    cache: dict[Any, Any] = {}
    dialects: list[Dialect] = []

    def create_engine(url: URL, **options: Any) -> Engine:
        created = sqlalchemy.create_engine(url, **options)
        if created.dialect.name == "sqlite":
            dialects.append(created.dialect)  # The first one is that of all.
            created.dialect = dialects[0]
            created.update_execution_options(compiled_cache=cache)
        return created

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "create_engine", create_engine)
        yield
