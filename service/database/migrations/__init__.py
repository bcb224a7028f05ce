"""Upgrade a database to the current tables; runs each time the service starts.

Forward only. A service that finds a newer revision than its own reads what the migration wrote: the oldest revision
whose services still work with the tables (`compatible_with` of each revision). If its own is as new, it starts and
changes nothing, so that pods of the previous release can be replaced during an upgrade and after a rollback; if not, it
refuses to start.

A revision does not prove what the tables are: another build may have created them under the same name. So the digest of
the declared tables is stored with the revision. Where it is another one, the tables are compared column by column, and
a service refuses to start on what it cannot work with.
"""

import hashlib
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Dialect, inspect, select, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement

from service.core.errors import Conflict
from service.database.engine import Database
from service.database.tables import compatibility, metadata

logger = logging.getLogger(__name__)

# Any number that no other advisory lock in the same database uses.
_ADVISORY_LOCK = 0x636D636C
# Differences that a message names.
_NAMED = 5
_STATES = {"add": "is missing", "remove": "is unknown"}


def upgrade(database: Database) -> None:
    """Apply missing migrations in one transaction. Two processes may do so at once.

    Raises Conflict if the tables are not those of this release, and not those of a newer one that it can work with.
    """
    with database.write() as connection:
        _lock(connection)
        scripts = revisions()
        found, newest = _revision(connection), next(iter(scripts))
        if found is not None and found not in scripts:
            _check_works_with(connection, found, scripts)
            return
        if found == newest and _stored(connection, "sha256") == declared_sha256():
            return
        if found != newest:
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        _check_tables(connection, newest)
        connection.execute(compatibility.delete())
        row = {"oldest": scripts[newest], "sha256": declared_sha256()}
        connection.execute(compatibility.insert().values(row))


@cache
def revisions() -> dict[str, str]:
    """Revisions of this release, newest first, and the oldest revision that each is compatible with."""
    scripts = ScriptDirectory(str(Path(__file__).parent)).walk_revisions()
    return {script.revision: script.module.compatible_with for script in scripts}


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _check_works_with(connection: Connection, found: str, known: dict[str, str]) -> None:
    oldest = _stored(connection, "oldest")
    if oldest in known:
        logger.warning(
            "a newer release upgraded the tables to %s; services since %s still work with them, so this "
            "one starts and does not change them",
            found,
            oldest,
        )
        return
    raise Conflict(
        f"this release cannot work with the database's tables: they have the revision {found}, and it knows "
        f"{', '.join(reversed(known))}. A newer release made them, or a build from before the first release. Start "
        "the one that made them, or restore the dump from before the upgrade (docs/upgrading.md, Rollback)"
    )


def _stored(connection: Connection, column: str) -> str | None:
    """Return a column of the table of compatibility; None if there is no such table, column or row."""
    inspector, table = inspect(connection), compatibility.name
    if not inspector.has_table(table):
        return None
    if column not in [each["name"] for each in inspector.get_columns(table)]:
        return None
    return connection.execute(select(compatibility.c[column])).scalar_one_or_none()


def ddl(dialect: Dialect) -> list[str]:
    """The statements that create the tables as this release declares them."""
    statements: list[ExecutableDDLElement] = []
    for table in metadata.sorted_tables:
        indices = sorted(table.indexes, key=lambda index: str(index.name))
        statements += [CreateTable(table), *map(CreateIndex, indices)]
    return [str(each.compile(dialect=dialect)).strip() for each in statements]


@cache
def declared_sha256() -> str:
    """Digest of the tables as this release declares them: the same for each kind of database."""
    return hashlib.sha256("\n".join(ddl(sqlite.dialect())).encode()).hexdigest()


def _check_tables(connection: Connection, revision: str) -> None:
    """Raises Conflict if a declared table, column, index or constraint is missing or differs.

    Tables of others in the same database do not count. A digest may also differ because SQLAlchemy writes the same
    table in another way; then nothing is found.
    """
    is_ours = {"include_name": lambda name, kind, _: kind != "table" or name in metadata.tables}
    context = MigrationContext.configure(connection, opts=is_ours)
    problems = [*_differences(compare_metadata(context, metadata))]
    if not problems:
        return
    named, left = problems[:_NAMED], len(problems) - _NAMED
    more = f", and {left} more" if left > 0 else ""
    raise Conflict(
        f"the database's tables have this release's revision {revision}, and are not its tables: "
        f"{', '.join(named)}{more}. Another build made them, and no migration leads from them. Start the build that "
        "made them, or restore into an empty database from object storage (docs/disaster.md, Rebuild)"
    )


def _differences(found: list[Any]) -> Iterator[str]:
    """Each difference in words. What is missing comes first; of a missing table, its indices are not named."""
    missing = {each[1].name for each in found if each[0] == "add_table"}
    for difference in sorted(found, key=lambda each: not str(each[0]).startswith("add_")):
        # All that differs in one column is a list of its own.
        kind, *rest = difference[0] if isinstance(difference, list) else difference
        verb, _, what = kind.partition("_")
        if isinstance(difference, list):
            what, name = "column", f"{rest[1]}.{rest[2]}"
        elif what == "column":
            name = f"{rest[1]}.{rest[2].name}"
        elif what != "table" and rest[0].table.name in missing:
            continue
        else:
            name = rest[0].name
        yield f"{what} {name} {_STATES.get(verb, 'differs')}"


def _lock(connection: Connection) -> None:
    """Take an advisory lock; SQLite has one write transaction at a time anyway."""
    if connection.dialect.name == "postgresql":
        # The migration of another process may take minutes.
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
