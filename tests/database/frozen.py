"""The tables of the newest release, frozen: `python -m tests.database.frozen` writes them.

Before the first release, run it after each change of a table. From then on, run it when a release is made, and never
for a change of a table: that takes a migration, which the tests apply to the frozen tables.
"""

from pathlib import Path

from sqlalchemy import Connection, Dialect
from sqlalchemy.dialects import postgresql, sqlite

from service.database.migrations import ddl, declared_sha256, revisions
from service.database.tables import compatibility, event_positions

_DIALECTS: dict[str, type[Dialect]] = {"sqlite": sqlite.dialect, "postgresql": postgresql.dialect}


def write() -> None:
    """Write the declared tables, and the rows that a migration of an empty database leaves, for each kind of database."""
    newest, oldest = next(iter(revisions().items()))
    rows = [
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
        f"INSERT INTO alembic_version VALUES ('{newest}')",
        f"INSERT INTO {compatibility.name} VALUES ('{oldest}', '{declared_sha256()}')",
        f"INSERT INTO {event_positions.name} (id, newest) VALUES (1, 0)",
    ]
    for name, dialect in _DIALECTS.items():
        lines = ";\n\n".join([*ddl(dialect()), *rows, ""]).splitlines()
        text = "\n".join(line.rstrip() for line in lines[:-1])
        _path(name).write_text(f"{text}\n")


def _path(dialect: str) -> Path:
    return Path(__file__).with_name(f"frozen_{dialect}.sql")


def create(connection: Connection) -> None:
    """Create the frozen tables in an empty database."""
    for statement in _path(connection.dialect.name).read_text().split(";\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)


if __name__ == "__main__":
    write()
