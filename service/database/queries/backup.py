"""What must be recorded in object storage: noted in the transaction that changes it.

A record has the rows of one model, dataset or version that lie nowhere else, so that the database can
be rebuilt from object storage (`service.control.rebuild`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Table,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from service.database.tables import (
    api_keys,
    backup_outbox,
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
    upload_uses,
    uploads,
    versions,
)

Kind = Literal["model", "dataset", "version"]
Row = dict[str, Any]
Tables = dict[str, list[Row]]


# What they hold is of the moment, and means nothing once the rows are back.
_PASSING = (leases, orphans, backup_outbox)

# Each behind those that it refers to.
_ORDER = (models, uploads, datasets, upload_uses, jobs, versions, promotions, trials, api_keys)

# Events that were told, and that no record knows of.
_SKIPPED_POSITIONS = 1_000_000

KINDS: tuple[Kind, ...] = ("model", "dataset", "version")
# Which service looks after it, what live.json shows, and what an attempt has said of itself are worth
# nothing in another database; manifests lie in object storage already.
LEFT_OUT: dict[str, frozenset[str]] = {
    "models": frozenset({"lease_owner", "lease_until", "mirrored_revision"}),
    "datasets": frozenset({"manifest"}),
    "jobs": frozenset({"progress", "launched_at", "heard_at", "ended_at"}),
    "versions": frozenset({"manifest", "evaluation", "dataset", "dataset_name"}),
}


@dataclass(frozen=True)
class OutboxEntry:
    """Something was changed, and is not recorded yet."""

    sequence: int
    kind: Kind
    name: str


def version_name(model: str, number: int) -> str:
    """How a version is called among the entries."""
    return f"{model}/{number}"


def enqueue(connection: Connection, kind: Kind, *names: str) -> None:
    """They are changed in this transaction."""
    if names:
        connection.execute(insert(backup_outbox), [{"kind": kind, "name": name} for name in names])


def enqueue_all(connection: Connection) -> None:
    """As if all of it had been changed."""
    enqueue(connection, "model", *connection.scalars(select(models.c.name)))
    enqueue(connection, "dataset", *connection.scalars(select(datasets.c.id)))
    numbers = connection.execute(select(versions.c.model, versions.c.number)).all()
    enqueue(connection, "version", *(version_name(model, number) for model, number in numbers))


def pending(connection: Connection, limit: int) -> list[OutboxEntry]:
    """The oldest entries. What is read after them is at least as new as they are."""
    query = select(backup_outbox).order_by(backup_outbox.c.sequence).limit(limit)
    return [OutboxEntry(**row) for row in connection.execute(query).mappings()]


def acknowledge(connection: Connection, entries: Sequence[OutboxEntry]) -> bool:
    """They were recorded. False if somebody else has said so of any of them."""
    sequences = [entry.sequence for entry in entries]
    statement = delete(backup_outbox).where(backup_outbox.c.sequence.in_(sequences))
    return connection.execute(statement).rowcount == len(sequences)


def rows_of(connection: Connection, kind: Kind, name: str) -> Tables:
    """What belongs into the record, by table; empty lists where there is no such thing."""
    if kind == "model":
        return _of_model(connection, name)
    if kind == "dataset":
        return _of_dataset(connection, name)
    model, _, number = name.rpartition("/")
    is_it = (versions.c.model == model, versions.c.number == int(number))
    return {"versions": _rows(connection, versions, *is_it)}


def _of_model(connection: Connection, name: str) -> Tables:
    return {
        "models": _rows(connection, models, models.c.name == name),
        "promotions": _rows(connection, promotions, promotions.c.model == name),
        "trials": _rows(connection, trials, trials.c.model == name),
    }


def _of_dataset(connection: Connection, name: str) -> Tables:
    """With the uploads that it names: without them a job that waits could not read its rows."""
    uses = _rows(connection, upload_uses, upload_uses.c.dataset == name)
    named = [use["upload"] for use in uses]
    return {
        "datasets": _rows(connection, datasets, datasets.c.id == name),
        "jobs": _rows(connection, jobs, jobs.c.dataset == name),
        "uploads": _rows(connection, uploads, uploads.c.id.in_(named)) if named else [],
        "upload_uses": uses,
    }


def _rows(connection: Connection, table: Table, *where: ColumnElement[bool]) -> list[Row]:
    left_out = LEFT_OUT.get(table.name, frozenset())
    wanted = [column for column in table.columns if column.name not in left_out]
    query = select(*wanted).where(*where).order_by(*table.primary_key.columns)
    return [dict(row) for row in connection.execute(query).mappings()]


def users_of_upload(connection: Connection, upload: str) -> Iterable[str]:
    """Datasets that name it: their records have its row."""
    query = select(upload_uses.c.dataset).where(upload_uses.c.upload == upload)
    return list(connection.scalars(query))


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
