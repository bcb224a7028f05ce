"""Brings a database to the newest form of the tables; run each time the service starts.

Forward only: what a newer service wrote, an older one cannot know; going back means a backup.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from service.database.engine import Database

# Any number, as long as nobody else takes it for an advisory lock in the same database.
_ADVISORY_LOCK = 0x636D636C


def upgrade(database: Database, revision: str = "head") -> None:
    """Apply what is missing, in one transaction. Of two at once, one waits and finds it done.

    A revision other than the newest is for whoever wants to see how an older database fares.
    """
    with database.write() as connection:
        _lock(connection)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def _lock(connection: Connection) -> None:
    """SQLite's write transactions are one at a time anyway."""
    if connection.dialect.name == "postgresql":
        # Another one's migration may take minutes.
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
