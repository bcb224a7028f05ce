"""Transactions, measured; and what they tell, passed on once it is committed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from service.database.engine import Database
from service.database.queries.events import LISTENER
from service.database.rows import Happening
from service.errors import DatabaseUnavailable, WriteConflict
from service.observe.metrics import Metrics, timed

_OUTCOMES: dict[type[Exception], str] = {
    DatabaseUnavailable: "unavailable",
    WriteConflict: "conflict",
}
# Something inside of it was refused: no fault of the database.
_OTHER = "rolled_back"


class MeteredDatabase(Database):
    """See Database."""

    def __init__(
        self, database: Database, metrics: Metrics, hear: Callable[[Happening], None]
    ) -> None:
        super().__init__(database.engine, database.writer_lock)
        self._metrics = metrics
        self._hear = hear

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """See Database."""
        told: list[Happening] = []
        measured = timed(self._metrics.transactions, "write", _OUTCOMES, _OTHER)
        with measured, super().write() as connection:
            yield connection.execution_options(**{LISTENER: told})
        for happening in told:
            self._hear(happening)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """See Database."""
        measured = timed(self._metrics.transactions, "read", _OUTCOMES, _OTHER)
        with measured, super().read() as connection:
            yield connection
