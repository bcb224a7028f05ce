"""Instances of the service, and what they lease: models, and loops that one of them runs for all.

An instance that is alive has one row in the table of leases, which it renews. A model names the instance that leases it; the
lease lasts as long as the row of that instance. So a thousand leases are renewed by one row.

The driver on the cluster, which prepares datasets and trains attempts, is one row as well.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from cmcl.contract.api.jobs import JobState
from service.database.engine import in_chunks
from service.database.queries.models import is_pointer_unwritten
from service.database.tables import drivers, jobs, leases, models, versions

_PREFIX = "instance/"
_IS_INSTANCE = leases.c.name.startswith(_PREFIX, autoescape=True)
# Rows of instances that died. Their clocks may differ by less than this.
_AFTER_DEATH = timedelta(hours=1)
_ALIVE = select(leases.c.owner, leases.c.until).where(
    _IS_INSTANCE, leases.c.until > bindparam("now")
)


def claim_lease(
    connection: Connection, name: str, owner: str, now: datetime, until: datetime
) -> bool:
    """Claim a lease that is free, expired, or the owner's already. Return whether it was claimed.

    Raises WriteConflict if another instance claimed it for the first time concurrently.
    """
    assert until > now, "a lease that has ended"
    if connection.execute(select(leases.c.name).where(leases.c.name == name)).first() is None:
        connection.execute(insert(leases).values(name=name, owner=owner, until=until))
        return True
    is_free = or_(leases.c.owner == owner, leases.c.until <= now)
    statement = update(leases).where(leases.c.name == name, is_free)
    return connection.execute(statement.values(owner=owner, until=until)).rowcount == 1


def release_lease(connection: Connection, name: str, owner: str) -> None:
    """Release a lease, unless another owner has claimed it since."""
    is_own = and_(leases.c.name == name, leases.c.owner == owner)
    connection.execute(delete(leases).where(is_own))


def alive(connection: Connection, now: datetime) -> dict[str, datetime]:
    """Return the instances that are alive, and until when."""
    return dict(connection.execute(_ALIVE, {"now": now}).all())


def register(connection: Connection, instance: str, now: datetime, until: datetime) -> None:
    """Register an instance, or renew all its leases; forget instances that died long ago.

    Raises WriteConflict if another thread of the instance registers it for the first time concurrently.
    """
    claim_lease(connection, _name(instance), instance, now, until)
    is_old = leases.c.until < now - _AFTER_DEATH
    connection.execute(delete(leases).where(_IS_INSTANCE, is_old))


def remove(connection: Connection, instance: str) -> None:
    """Remove an instance that ends, and so release all its leases."""
    connection.execute(delete(leases).where(leases.c.name == _name(instance)))


def shares(connection: Connection) -> dict[str | None, int]:
    """Return how many models with work name each instance, alive or not; None: those that name none."""
    return dict(connection.execute(_SHARES).all())


def leased(connection: Connection, instance: str) -> list[str]:
    """Return the models with work that the instance leases, by name."""
    query = select(models.c.name).where(models.c.lease_owner == instance, _has_work())
    return list(connection.scalars(query.order_by(models.c.name)))


def claim(connection: Connection, instance: str, now: datetime, most: int) -> list[str]:
    """Lease at most `most` models with work whose lease is free, and return them.

    Of several instances that claim concurrently, each skips what another has locked.
    """
    return _claim(connection, instance, now, _has_work(), most)


def claim_one(connection: Connection, instance: str, now: datetime, model: str) -> bool:
    """Lease one model if its lease is free. Return whether it was."""
    return bool(_claim(connection, instance, now, models.c.name == model, 1))


def release(connection: Connection, instance: str, names: Collection[str]) -> None:
    """Release those leases of these models that the instance holds."""
    for some in in_chunks(list(names)):
        is_own = and_(models.c.name.in_(some), models.c.lease_owner == instance)
        connection.execute(update(models).where(is_own).values(lease_owner=None))


def _claim(
    connection: Connection, instance: str, now: datetime, which: ColumnElement[bool], most: int
) -> list[str]:
    owner = models.c.lease_owner
    living = select(leases.c.owner).where(_IS_INSTANCE, leases.c.until > now)
    dead = select(owner).where(which, owner.is_not(None), owner.not_in(living)).distinct()
    # A separate statement: if another instance changes a model at the same time, PostgreSQL compares the new row of the
    # model with the leases as they were, in which that instance may not be alive yet.
    is_free = or_(owner.is_(None), owner.in_(connection.scalars(dead).all()))
    query = select(models.c.name).where(which, is_free).order_by(models.c.name).limit(most)
    names = list(connection.scalars(query.with_for_update(skip_locked=True)))
    for some in in_chunks(names):
        changed = update(models).where(models.c.name.in_(some))
        connection.execute(changed.values(lease_owner=instance))
    assert len(names) <= most
    return names


def _has_work() -> ColumnElement[bool]:
    """Condition: a pointer to write, an unfinished job, or a version to store.

    Each uses a partial index, so finished rows cost nothing. A deleted model only has its pointer left to write.
    """
    unfinished = select(jobs.c.id).where(
        jobs.c.model == models.c.name, jobs.c.finished_at.is_(None)
    )
    unstored = select(versions.c.number).where(
        versions.c.model == models.c.name, versions.c.stored_at.is_(None)
    )
    unfinished_work = or_(unfinished.exists(), unstored.exists())
    return or_(is_pointer_unwritten(), and_(models.c.deleted_at.is_(None), unfinished_work))


_SHARES = (
    select(models.c.lease_owner, func.count()).where(_has_work()).group_by(models.c.lease_owner)
)


def _name(instance: str) -> str:
    """The last part of the name is random, and short enough for the column."""
    return f"{_PREFIX}{instance.rpartition('-')[2]}"


_DRIVER_ID = 1
_NEWEST_DRIVER = select(*(column for column in drivers.columns if column.name != "id"))


def is_driver_needed(connection: Connection, states: Collection[JobState]) -> bool:
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


def newest_driver(connection: Connection) -> DriverRow:
    row = connection.execute(_NEWEST_DRIVER).mappings().one_or_none()
    return DriverRow() if row is None else DriverRow(**row)


def begin_driver(connection: Connection, seen: DriverRow, now: datetime) -> bool:
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
        connection.execute(insert(drivers).values(id=_DRIVER_ID, **values))
        return True
    return change_driver(connection, seen, values)


def change_driver(connection: Connection, seen: DriverRow, changes: Mapping[str, object]) -> bool:
    """Change the record of the driver, unless it has another number by now. Returns whether it was changed."""
    statement = update(drivers).where(drivers.c.number == seen.number)
    return connection.execute(statement.values(**changes)).rowcount == 1
