"""PostgreSQL for fault scenarios: one database, restored before each scenario."""

from pathlib import Path

from sqlalchemy import create_engine, insert, make_url, select

from service.database.engine import open_database
from service.database.tables import metadata
from tests.faults.world import make_template

_STORY = "faults_story"


class Postgres:
    """A database on a server of this session."""

    def __init__(self, server_url: str, folder: Path) -> None:
        server = make_url(server_url).set(drivername="postgresql+psycopg")
        admin = create_engine(server, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {_STORY}")
        admin.dispose()
        self.url = server.set(database=_STORY).render_as_string(hide_password=False)
        self.template = make_template(folder, database_url=self.url)
        self._database = open_database(self.url)
        with self._database.read() as connection:
            rows = {
                table: [dict(row) for row in connection.execute(select(table)).mappings()]
                for table in metadata.sorted_tables
            }
        self._first = {table: found for table, found in rows.items() if found}

    def restart(self) -> None:
        """Restore the initial state of the database."""
        names = ", ".join(table.name for table in metadata.sorted_tables)
        with self._database.write() as connection:
            connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
            for table, rows in self._first.items():
                connection.execute(insert(table), rows)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
