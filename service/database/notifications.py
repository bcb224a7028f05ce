"""Notifications between instances on PostgreSQL: an event is announced to all of them when it is committed.

https://www.postgresql.org/docs/current/sql-notify.html. SQLite has none: there, the instance that commits an event
processes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from service.core.errors import DatabaseUnavailable
from service.database.engine import Database

_CHANNEL = "cmcl_events"


def is_supported(database: Database) -> bool:
    """Return whether this database has notifications."""
    return database.engine.dialect.name == "postgresql"


def notify(connection: sqlalchemy.Connection, model: str) -> None:
    """Announce an event of the model with the commit of this transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(_CHANNEL, model)))


class Listener:
    """Listens on a connection of its own. For one thread.

    A proxy that pools connections by transaction passes no notifications on.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sqlalchemy.Connection | None = None

    def connect(self) -> bool:
        """Begin to listen. Returns False if it does already. Raises DatabaseUnavailable."""
        if self._connection is not None:
            return False
        with self._translated():
            connection = self._database.engine.connect()
            self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            # It is closed, and not given to others, when this ends.
            self._connection.detach()
            self._connection.exec_driver_sql(f"LISTEN {_CHANNEL}")
        return True

    def wait(self, seconds: float) -> set[str]:
        """Return the models of events since the last call, once there are any; empty after so many seconds.

        Raises DatabaseUnavailable.
        """
        if self._connection is None:
            raise DatabaseUnavailable("not connected")
        with self._translated():
            driver: Any = self._connection.connection.dbapi_connection
            return {each.payload for each in driver.notifies(timeout=seconds, stop_after=1)}

    def close(self) -> None:
        """End listening, also on a connection that is lost."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.invalidated:
            # The driver's own, without a rollback, which a lost connection would refuse.
            driver: Any = connection.connection.dbapi_connection
            driver.close()
            connection.invalidate()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate the errors of SQLAlchemy and of its driver."""
        driver: Any = self._database.engine.dialect.loaded_dbapi
        try:
            yield
        except (SQLAlchemyError, driver.Error) as error:
            raise DatabaseUnavailable(f"notifications cannot be received: {error}") from error
