"""The driver on the cluster, which prepares datasets and may train attempts, and the jobs that need it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from cmcl.contract.api.jobs import JobState
from service.database.tables import drivers, jobs

_ID = 1
_NEWEST = select(*(column for column in drivers.columns if column.name != "id"))


def is_needed(connection: Connection, states: Collection[JobState]) -> bool:
    """Return whether a job is in one of the states."""
    query = select(jobs.c.id).where(jobs.c.finished_at.is_(None), jobs.c.state.in_(states))
    return connection.execute(query.limit(1)).first() is not None


@dataclass(frozen=True)
class DriverRow:
    """The newest driver; `number` is 0 before the first one.

    `failures`: number of drivers in a row that ended early. `unavailable_since`: since when the launcher does not
    respond, or a queue of the cluster does not start it. `message`: why none runs.
    """

    number: int = 0
    began_at: datetime | None = None
    launched_at: datetime | None = None
    ended_at: datetime | None = None
    failures: int = 0
    unavailable_since: datetime | None = None
    message: str | None = None

    @property
    def runs(self) -> bool:
        """Whether the launcher has reported it as running, and not its end."""
        return self.launched_at is not None and self.ended_at is None


def newest(connection: Connection) -> DriverRow:
    """Return the newest driver."""
    row = connection.execute(_NEWEST).mappings().one_or_none()
    return DriverRow() if row is None else DriverRow(**row)


def begin(connection: Connection, seen: DriverRow, now: datetime) -> bool:
    """Assign the next number, before the driver is submitted. False if another instance did.

    Raises WriteConflict if another instance concurrently assigned the first one.
    """
    values = {
        "number": seen.number + 1,
        "began_at": now,
        "launched_at": None,
        "ended_at": None,
        "failures": seen.failures,
    }
    if seen.number == 0:
        connection.execute(insert(drivers).values(id=_ID, **values))
        return True
    return change(connection, seen, values)


def change(connection: Connection, seen: DriverRow, changes: Mapping[str, object]) -> bool:
    """Change the record of the driver, unless it has another number by now. Returns whether it was changed."""
    statement = update(drivers).where(drivers.c.number == seen.number)
    return connection.execute(statement.values(**changes)).rowcount == 1
