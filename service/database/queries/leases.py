"""Queries about leases: work that one service at a time does for all."""

from datetime import datetime

from sqlalchemy import Connection, insert, or_, select, update

from service.database.tables import leases


def claim(connection: Connection, name: str, owner: str, now: datetime, until: datetime) -> bool:
    """Whether the lease is the owner's from now on: it was free, over, or theirs already.

    Raises WriteConflict if somebody else took it for the first time at this moment.
    """
    if connection.execute(select(leases.c.name).where(leases.c.name == name)).first() is None:
        connection.execute(insert(leases).values(name=name, owner=owner, until=until))
        return True
    is_free = or_(leases.c.owner == owner, leases.c.until <= now)
    statement = update(leases).where(leases.c.name == name, is_free)
    return connection.execute(statement.values(owner=owner, until=until)).rowcount == 1
