"""Upgrade a database to the current tables; runs each time the service starts.

Forward only. A service that finds a newer revision than its own reads what the migration wrote: the oldest revision
whose services still work with the tables (`compatible_with` of each revision). If its own is as new, it starts and
changes nothing, so that pods of the previous release can be replaced during an upgrade and after a rollback; if not, it
refuses to start.
"""

import logging
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text

from service.database.engine import Database
from service.database.tables import compatibility
from service.errors import Conflict

logger = logging.getLogger(__name__)

# Any number that no other advisory lock in the same database uses.
_ADVISORY_LOCK = 0x636D636C


def upgrade(database: Database) -> None:
    """Apply missing migrations in one transaction. Two processes may do so at once.

    Raises Conflict if a newer release left tables that this one cannot work with.
    """
    with database.write() as connection:
        _lock(connection)
        scripts = revisions()
        found, newest = _revision(connection), next(iter(scripts))
        if found is not None and found not in scripts:
            _check_works_with(connection, found, scripts)
        elif found != newest:
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.execute(compatibility.delete())
            connection.execute(compatibility.insert().values(oldest=scripts[newest]))


@cache
def revisions() -> dict[str, str]:
    """Revisions of this release, newest first, and the oldest revision that each is compatible with."""
    scripts = ScriptDirectory(str(Path(__file__).parent)).walk_revisions()
    return {script.revision: script.module.compatible_with for script in scripts}


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _check_works_with(connection: Connection, found: str, known: dict[str, str]) -> None:
    oldest = _oldest_compatible(connection)
    if oldest in known:
        logger.warning(
            "a newer release upgraded the tables to %s; services since %s still work with them, so this "
            "one starts and does not change them",
            found,
            oldest,
        )
        return
    raise Conflict(
        f"a newer release upgraded the database's tables to {found}, and this one supports them up to "
        f"{next(iter(known))} and cannot work with them: start the newer release, or restore the dump "
        "that was made before the upgrade (docs/upgrading.md, Rollback)"
    )


def _oldest_compatible(connection: Connection) -> str | None:
    """Return what the newer release wrote, or None if the database is not one of ours."""
    if not inspect(connection).has_table(compatibility.name):
        return None
    return connection.execute(select(compatibility.c.oldest)).scalar_one_or_none()


def _lock(connection: Connection) -> None:
    """Take an advisory lock; SQLite has one write transaction at a time anyway."""
    if connection.dialect.name == "postgresql":
        # The migration of another process may take minutes.
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
