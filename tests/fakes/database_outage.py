"""A database that does not respond, while a block runs."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from service.database.engine import Database


@contextmanager
def outage(database: Database, message: str = "disk I/O error") -> Iterator[None]:
    """Every statement fails in the block, also in other threads, as SQLite does when its disk fails."""

    def fail(*_: object) -> None:
        raise OperationalError("statement", None, sqlite3.OperationalError(message))

    event.listen(database.engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(database.engine, "before_cursor_execute", fail)
