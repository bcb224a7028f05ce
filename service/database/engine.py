"""Transactions on SQLite or PostgreSQL, with the same guarantees on both; notifications between instances; pages of lists.

SQLite: write-ahead log, every commit flushed to the disk, and writers take the lock when they begin (a reader that
became a writer half-way could not wait for the lock, it would fail).

PostgreSQL announces an event to all instances when it is committed, https://www.postgresql.org/docs/current/sql-notify.html.
SQLite has no notifications: there, the instance that commits an event processes it.
"""

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import sqlalchemy
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from service.core.errors import DatabaseUnavailable, WriteConflict
from service.database.rows import Event

T = TypeVar("T")
Measure = Callable[[str], AbstractContextManager[None]]

_READER = "cmcl_reader"
_EMITTED = "cmcl_emitted"
_BUSY_MILLISECONDS = 15_000
_BETWEEN_TRIES_SECONDS = 0.01
_CONFLICTS_BEFORE_GIVING_UP = 3
# Values of one IN list.
_AT_ONCE = 500
# A service that vanished in the middle of a transaction keeps its locks no longer than this.
_IDLE_MILLISECONDS = 60_000
# Without these, the system waits two hours for a server that vanished with its machine. Seconds, except for the last
# one: milliseconds without an acknowledgement.
_TIMEOUTS = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
}


class WriterLock:
    """Fair lock for the writers of this process: first come, first served.

    SQLite has one writer at a time, but lets the others poll at growing intervals: with four writers, one in a hundred
    waited a third of a second. `threading.Lock` may be taken again by the thread that released it, however long others
    wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._is_taken:
                assert not self._waiting, "a writer waits for a lock that is free"
                self._is_taken = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        if turn.wait(_BUSY_MILLISECONDS / 1000):
            return
        with self._lock:
            if turn.is_set():
                return
            self._waiting.remove(turn)
        raise DatabaseUnavailable("the database did not respond: another writer does not end")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            assert self._is_taken, "released twice"
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._is_taken = False


class Database:
    """Transactions of one database. Raises DatabaseUnavailable and WriteConflict.

    Subscribers are called with every event of a transaction, after its commit, in the thread that committed it.
    """

    def __init__(
        self,
        engine: Engine,
        writer_lock: WriterLock | None = None,
        measure: Measure = lambda _: nullcontext(),
    ) -> None:
        self.engine = engine
        self._measure = measure
        self.writer_lock = writer_lock
        self._subscribers: list[Callable[[Event], None]] = []
        self._readers = engine.execution_options(**{_READER: True})
        # Why the last write transaction failed; None if it did not.
        self.write_problem: str | None = None

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        """Have `subscriber` called with every event that is committed from now on."""
        self._subscribers.append(subscriber)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed unless the block raises."""
        emitted: list[Event] = []
        try:
            with (
                self._measure("write"),
                _translated(),
                self.writer_lock or nullcontext(),
                self.engine.begin() as connection,
            ):
                yield connection.execution_options(**{_EMITTED: emitted})
        except DatabaseUnavailable as error:
            self.write_problem = str(error)
            raise
        self.write_problem = None
        for each in emitted:
            for subscriber in self._subscribers:
                subscriber(each)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that never waits for writers and never writes."""
        with self._measure("read"), _translated(), self._readers.connect() as connection:
            yield connection

    def settle(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction; again if another transaction inserted the same row first.

        `work` reads before it inserts, so that it finds the other row the second time.
        """
        for _ in range(_CONFLICTS_BEFORE_GIVING_UP - 1):
            try:
                with self.write() as connection:
                    return work(connection)
            except WriteConflict:
                continue
        with self.write() as connection:
            return work(connection)

    def close(self) -> None:
        self.engine.dispose()


def announce_after_commit(connection: Connection, emitted: Event) -> None:
    """Pass the event to the subscribers of the database once the transaction of this connection is committed."""
    connection.get_execution_options().get(_EMITTED, []).append(emitted)


def open_database(url: str, measure: Measure = lambda _: nullcontext()) -> Database:
    """Open the database at `url`. For SQLite, its folder is created. `measure` times transactions, `read` or `write`."""
    parsed = _with_driver(make_url(url))
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(_with_timeouts(parsed), pool_pre_ping=True, hide_parameters=True)
        event.listen(engine, "connect", _configure_postgresql)
        return Database(engine, measure=measure)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, hide_parameters=True)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return Database(engine, WriterLock(), measure)


def _with_driver(url: URL) -> URL:
    """Add the driver to a URL such as postgresql://."""
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    return url


def _with_timeouts(url: URL) -> URL:
    """Add timeouts that the URL does not set itself."""
    missing = {name: value for name, value in _TIMEOUTS.items() if name not in url.query}
    return url.update_query_dict(missing)


def _configure_postgresql(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Bound the wait for locks, as with SQLite."""
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = {_BUSY_MILLISECONDS}")
    cursor.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_MILLISECONDS}")
    cursor.close()
    connection.commit()


def _configure_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # `_begin_sqlite` begins transactions, so the driver must not.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: DBAPICursor) -> None:
    """Switch to WAL. SQLite refuses two that switch a new file at once without waiting."""
    deadline = time.monotonic() + _BUSY_MILLISECONDS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_BETWEEN_TRIES_SECONDS)


def _begin_sqlite(connection: Connection) -> None:
    is_reader = connection.get_execution_options().get(_READER)
    connection.exec_driver_sql("BEGIN DEFERRED" if is_reader else "BEGIN IMMEDIATE")


def one(
    connection: Connection,
    query: Select[Any],
    convert: Callable[[RowMapping], T],
    parameters: Mapping[str, object] | None = None,
) -> T | None:
    """The only row of a query, converted; None if there is none."""
    row = connection.execute(query, parameters).mappings().one_or_none()
    return None if row is None else convert(row)


def in_chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Values in pieces that fit one IN list."""
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise WriteConflict(str(error.orig)) from error
    except (OperationalError, PoolTimeout) as error:
        code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_ERROR:
            # The statement cannot run on these tables, so no retry helps. PostgreSQL's driver has another class for it.
            raise
        if code == sqlite3.SQLITE_FULL:
            raise DatabaseUnavailable(
                "the disk of the database is full: free space there, then repeat the request"
            ) from error
        raise DatabaseUnavailable(f"the database did not respond: {_message(error)}") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise DatabaseUnavailable(
            f"the database closed the connection: {_message(error)}"
        ) from error


def _message(error: SQLAlchemyError) -> str:
    """The driver's message. Users see it, so it must contain neither the statement nor its values."""
    return str(error.orig if isinstance(error, DBAPIError) else error)


_CHANNEL = "cmcl_events"


def has_notifications(database: Database) -> bool:
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
        """Return the models of events since the last call, once there are any; empty after `seconds`.

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


Order = Literal["asc", "desc"]
Position = TypeVar("Position", int, str)


@dataclass(frozen=True)
class Seek(Generic[Position]):
    """A page of a list that is ordered by one unique column: up to `limit` rows beyond `after`.

    `after` is the position of the last row of the page before; None: from the first, or for `desc` the last row.
    """

    after: Position | None = None
    order: Order = "asc"
    limit: int = 50

    def peek(self) -> Self:
        """The same page and one row more, which shows whether another page follows."""
        return replace(self, limit=self.limit + 1)

    def restrict(self, query: Select[Any], column: ColumnElement[Position]) -> Select[Any]:
        """Order a query by the column, and restrict it to the rows of this page."""
        is_descending = self.order == "desc"
        if self.after is not None:
            query = query.where(column < self.after if is_descending else column > self.after)
        return query.order_by(column.desc() if is_descending else column.asc()).limit(self.limit)
