"""PostgreSQL for stories: a migrated database that each of them gets a copy of."""

from pathlib import Path

from sqlalchemy import create_engine, make_url

from tests.faults.world import Template, make_template

_TEMPLATE, _STORY = "faults_template", "faults_story"


class Postgres:
    """Databases on a server of this session."""

    def __init__(self, server_url: str, folder: Path) -> None:
        self._url = make_url(server_url).set(drivername="postgresql+psycopg")
        self._admin = create_engine(self._url, isolation_level="AUTOCOMMIT")
        self._run(f"CREATE DATABASE {_TEMPLATE}")
        self.template: Template = make_template(folder, database_url=self._url_of(_TEMPLATE))

    def fresh_database(self) -> str:
        """Its URL, always the same one. What an earlier story left in it is gone."""
        self._run(f"DROP DATABASE IF EXISTS {_STORY} WITH (FORCE)")
        self._run(f"CREATE DATABASE {_STORY} TEMPLATE {_TEMPLATE}")
        return self._url_of(_STORY)

    def close(self) -> None:
        """Hang up."""
        self._admin.dispose()

    def _url_of(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    def _run(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)
