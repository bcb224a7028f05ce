"""Queries of a rebuild: into an empty database, all rows or none."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, Integer, delete, func, insert, select, text, update

from service.database.queries.records import Row
from service.database.tables import (
    api_keys,
    compatibility,
    datasets,
    event_positions,
    jobs,
    leases,
    metadata,
    models,
    orphans,
    promotions,
    trials,
    unrecorded,
    upload_uses,
    uploads,
    versions,
)

# What they hold is of the moment, and means nothing once the rows are back.
_PASSING = (leases, orphans, unrecorded)
# Each behind those that it refers to.
_ORDER = (models, uploads, datasets, upload_uses, jobs, versions, promotions, trials, api_keys)
# Events that were told, and that no record knows of.
_SKIPPED_POSITIONS = 1_000_000


def holders(connection: Connection, now: datetime) -> list[str]:
    """Who works on this database at the moment: what their leases are for."""
    query = select(leases.c.name).where(leases.c.until > now).order_by(leases.c.name)
    return list(connection.scalars(query))


def filled(connection: Connection) -> list[str]:
    """Tables that have rows, without those that every database has."""
    passing = {table.name for table in (*_PASSING, event_positions, compatibility)}
    return [
        table.name
        for table in metadata.sorted_tables
        if table.name not in passing and connection.execute(select(table).limit(1)).first()
    ]


def fill(connection: Connection, tables: Mapping[str, Sequence[Row]]) -> None:
    """Insert all rows; what passes is forgotten."""
    for table in _PASSING:
        connection.execute(delete(table))
    for table in _ORDER:
        for row in tables.get(table.name, ()):
            connection.execute(insert(table).values(**row))
    _count_on(connection)


def set_position(connection: Connection, position: int) -> None:
    """Events get places well above that one: listeners go on behind what they have seen."""
    connection.execute(update(event_positions).values(newest=position + _SKIPPED_POSITIONS))


def _count_on(connection: Connection) -> None:
    """PostgreSQL counts by itself, and has not seen the numbers that were inserted."""
    if connection.dialect.name != "postgresql":
        return
    for table in (datasets, jobs):
        newest = select(
            func.coalesce(func.max(table.c.sequence), 0, type_=Integer)
        ).scalar_subquery()
        highest = connection.execute(select(newest)).scalar_one()
        if highest:
            connection.execute(
                text("SELECT setval(pg_get_serial_sequence(:table, 'sequence'), :highest)"),
                {"table": table.name, "highest": highest},
            )
