"""The outbox of the backup, the rows of a record, and the queries of a rebuild.

A record has the rows of one model, or of one dataset, that are stored nowhere else, so that the database can be rebuilt
from object storage (`service.maintenance.rebuild`). The transaction that changes such a row enqueues its record, or emits
an event, which does so.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Table,
    and_,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from service.database.tables import (
    api_keys,
    attempts,
    backup_outbox,
    compatibility,
    datasets,
    drivers,
    event_positions,
    jobs,
    leases,
    metadata,
    models,
    orphans,
    promotions,
    upload_uses,
    uploads,
    versions,
)

Kind = Literal["model", "dataset"]
Row = dict[str, Any]
Tables = dict[str, list[Row]]

# Transient tables, which a rebuild empties.
_PASSING = (leases, orphans, drivers, backup_outbox)

# What a rebuild fills, each table after those that it refers to.
REBUILT = (models, uploads, datasets, upload_uses, jobs, attempts, versions, promotions, api_keys)

# Added to the position: more than the events since the newest record.
_SKIPPED_POSITIONS = 1_000_000

# Columns of a version that its manifest brings back.
OF_THE_MANIFEST = frozenset(
    (
        *("manifest", "kind", "copied_from", "dataset", "dataset_name", "pair_first"),
        *("pair_second", "evaluation", "mean_recall", "max_drift", "capacity", "figures"),
    )
)
# Leases, the state of live.json and the progress of an attempt mean nothing in another database; manifests are in
# object storage already.
LEFT_OUT: dict[str, frozenset[str]] = {
    "models": frozenset({"lease_owner", "written_revision"}),
    "datasets": frozenset({"manifest"}),
    "attempts": frozenset({"progress_since", "progress_interval"}),
    "jobs": frozenset({"progress", "prepare_progress", "launched_at", "heard_at", "ended_at"}),
    "versions": OF_THE_MANIFEST,
}


class OutboxEntry(NamedTuple):
    """A change whose record is not written yet."""

    sequence: int
    kind: Kind
    name: str


def enqueue(connection: Connection, kind: Kind, *names: str) -> None:
    """Enqueue records of what this transaction changes."""
    if names:
        connection.execute(insert(backup_outbox), [{"kind": kind, "name": name} for name in names])


def enqueue_all(connection: Connection) -> None:
    enqueue(connection, "model", *connection.scalars(select(models.c.name)))
    enqueue(connection, "dataset", *connection.scalars(select(datasets.c.id)))


def pending(connection: Connection, limit: int) -> list[OutboxEntry]:
    """The oldest entries. Rows that are read after them are at least as new."""
    query = select(backup_outbox).order_by(backup_outbox.c.sequence).limit(limit)
    return [OutboxEntry(**row) for row in connection.execute(query).mappings()]


def acknowledge(connection: Connection, entries: Sequence[OutboxEntry]) -> bool:
    """Remove entries whose records are written. False if another instance removed any of them."""
    sequences = [entry.sequence for entry in entries]
    statement = delete(backup_outbox).where(backup_outbox.c.sequence.in_(sequences))
    return connection.execute(statement).rowcount == len(sequences)


def rows_of(connection: Connection, kind: Kind, name: str) -> Tables:
    """The rows of a record by table: of a model with its versions, promotions and merges, which have no dataset; of a
    dataset with its jobs, and the uploads that a queued job needs."""
    if kind == "model":
        own_jobs = and_(jobs.c.model == name, jobs.c.dataset.is_(None))
        wanted: list[tuple[Table, ColumnElement[bool]]] = [
            (models, models.c.name == name),
            (versions, versions.c.model == name),
            (promotions, promotions.c.model == name),
        ]
    else:
        own_jobs = jobs.c.dataset == name
        used = select(upload_uses.c.upload).where(upload_uses.c.dataset == name)
        wanted = [
            (datasets, datasets.c.id == name),
            (upload_uses, upload_uses.c.dataset == name),
            (uploads, uploads.c.id.in_(used)),
        ]
    of_jobs = attempts.c.job.in_(select(jobs.c.id).where(own_jobs))
    wanted += [(jobs, own_jobs), (attempts, of_jobs)]
    return {table.name: _rows(connection, table, condition) for table, condition in wanted}


def _rows(connection: Connection, table: Table, condition: ColumnElement[bool]) -> list[Row]:
    left_out = LEFT_OUT.get(table.name, frozenset())
    columns = [column for column in table.columns if column.name not in left_out]
    query = select(*columns).where(condition).order_by(*table.primary_key.columns)
    return [dict(row) for row in connection.execute(query).mappings()]


def holders(connection: Connection, now: datetime) -> list[str]:
    """Names of leases that are held: a service works on this database."""
    query = select(leases.c.name).where(leases.c.until > now).order_by(leases.c.name)
    return list(connection.scalars(query))


def filled(connection: Connection) -> list[str]:
    """Tables with rows, without those that every database has."""
    passing = {table.name for table in (*_PASSING, event_positions, compatibility)}
    return [
        table.name
        for table in metadata.sorted_tables
        if table.name not in passing and connection.execute(select(table).limit(1)).first()
    ]


def fill(connection: Connection, tables: Mapping[str, Sequence[Row]], position: int | None) -> None:
    """Insert all rows, empty the transient tables, and enqueue all records.

    Events are numbered well above `position`, so that listeners miss none.
    """
    for table in _PASSING:
        connection.execute(delete(table))
    for table in REBUILT:
        for row in tables.get(table.name, ()):
            connection.execute(insert(table).values(**row))
    _advance_sequences(connection)
    if position is not None:
        connection.execute(update(event_positions).values(newest=position + _SKIPPED_POSITIONS))
    enqueue_all(connection)


def _advance_sequences(connection: Connection) -> None:
    """Advance the sequences of PostgreSQL behind the inserted numbers."""
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
