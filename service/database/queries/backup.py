"""The outbox of the backup, the rows of a record, and the queries of a rebuild.

A record has the rows of one model, dataset or version that are stored nowhere else, so that the database can be rebuilt
from object storage (`service.maintenance.rebuild`). The transaction that changes a row enqueues its record.
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
    tuple_,
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

Kind = Literal["model", "dataset", "version"]
Row = dict[str, Any]
Tables = dict[str, list[Row]]


# Transient tables, which a rebuild empties.
_PASSING = (leases, orphans, drivers, backup_outbox)

# Each after the tables that it refers to.
_ORDER = (
    models,
    uploads,
    datasets,
    upload_uses,
    jobs,
    attempts,
    versions,
    promotions,
    api_keys,
)

# Added to the position: more than the events since the newest record.
_SKIPPED_POSITIONS = 1_000_000

# Columns of a version that its manifest brings back.
OF_THE_MANIFEST = frozenset(
    {
        *(
            "manifest",
            "kind",
            "copied_from",
            "dataset",
            "dataset_name",
            "pair_first",
            "pair_second",
        ),
        *("evaluation", "mean_recall", "max_drift", "capacity", "figures"),
    }
)
KINDS: tuple[Kind, ...] = ("model", "dataset", "version")
# Leases, the state of live.json and the progress of an attempt mean nothing in another database; manifests are in
# object storage already.
LEFT_OUT: dict[str, frozenset[str]] = {
    "models": frozenset({"lease_owner", "mirrored_revision"}),
    "datasets": frozenset({"manifest"}),
    "attempts": frozenset({"progress_since", "progress_interval"}),
    "jobs": frozenset({"progress", "prepare_progress", "launched_at", "heard_at", "ended_at"}),
    "versions": OF_THE_MANIFEST,
}


@dataclass(frozen=True)
class OutboxEntry:
    """A change whose record is not written yet."""

    sequence: int
    kind: Kind
    name: str


def version_name(model: str, number: int) -> str:
    """The name of a version in the outbox."""
    return f"{model}/{number}"


def enqueue(connection: Connection, kind: Kind, *names: str) -> None:
    """Enqueue records of what this transaction changes."""
    if names:
        connection.execute(insert(backup_outbox), [{"kind": kind, "name": name} for name in names])


def enqueue_job(connection: Connection, model: str, dataset: str | None) -> None:
    """Enqueue the record that has a job: that of its dataset, or of its model if it merges."""
    if dataset is not None:
        enqueue(connection, "dataset", dataset)
    else:
        enqueue(connection, "model", model)


def enqueue_all(connection: Connection) -> None:
    """Enqueue all records."""
    enqueue(connection, "model", *connection.scalars(select(models.c.name)))
    enqueue(connection, "dataset", *connection.scalars(select(datasets.c.id)))
    numbers = connection.execute(select(versions.c.model, versions.c.number)).all()
    enqueue(connection, "version", *(version_name(model, number) for model, number in numbers))


def pending(
    connection: Connection, limit: int, thing: tuple[Kind, str] | None = None
) -> list[OutboxEntry]:
    """The oldest entries, of all or of one thing. Rows that are read after them are at least as new."""
    query = select(backup_outbox).order_by(backup_outbox.c.sequence).limit(limit)
    if thing is not None:
        query = query.where(tuple_(backup_outbox.c.kind, backup_outbox.c.name) == thing)
    return [OutboxEntry(**row) for row in connection.execute(query).mappings()]


def acknowledge(connection: Connection, entries: Sequence[OutboxEntry]) -> bool:
    """Remove entries whose records are written. False if another replica removed any of them."""
    sequences = [entry.sequence for entry in entries]
    statement = delete(backup_outbox).where(backup_outbox.c.sequence.in_(sequences))
    return connection.execute(statement).rowcount == len(sequences)


def rows_of(connection: Connection, kind: Kind, name: str) -> Tables:
    """The rows of a record by table; empty lists if there are none."""
    if kind == "model":
        return _of_model(connection, name)
    if kind == "dataset":
        return _of_dataset(connection, name)
    model, _, number = name.rpartition("/")
    is_it = (versions.c.model == model, versions.c.number == int(number))
    return {"versions": _rows(connection, versions, *is_it)}


def _of_model(connection: Connection, name: str) -> Tables:
    """With its merges, which have no dataset."""
    merges = (jobs.c.model == name, jobs.c.dataset.is_(None))
    return {
        "jobs": _rows(connection, jobs, *merges),
        "attempts": _rows(
            connection, attempts, attempts.c.job.in_(select(jobs.c.id).where(*merges))
        ),
        "models": _rows(connection, models, models.c.name == name),
        "promotions": _rows(connection, promotions, promotions.c.model == name),
    }


def _of_dataset(connection: Connection, name: str) -> Tables:
    """With the uploads that it names: a queued job needs them."""
    uses = _rows(connection, upload_uses, upload_uses.c.dataset == name)
    named = [use["upload"] for use in uses]
    of_dataset = select(jobs.c.id).where(jobs.c.dataset == name)
    return {
        "datasets": _rows(connection, datasets, datasets.c.id == name),
        "jobs": _rows(connection, jobs, jobs.c.dataset == name),
        "attempts": _rows(connection, attempts, attempts.c.job.in_(of_dataset)),
        "uploads": _rows(connection, uploads, uploads.c.id.in_(named)) if named else [],
        "upload_uses": uses,
    }


def _rows(connection: Connection, table: Table, *where: ColumnElement[bool]) -> list[Row]:
    left_out = LEFT_OUT.get(table.name, frozenset())
    wanted = [column for column in table.columns if column.name not in left_out]
    query = select(*wanted).where(*where).order_by(*table.primary_key.columns)
    return [dict(row) for row in connection.execute(query).mappings()]


def users_of_upload(connection: Connection, upload: str) -> Iterable[str]:
    """Datasets that name the upload: their records have its row."""
    query = select(upload_uses.c.dataset).where(upload_uses.c.upload == upload)
    return list(connection.scalars(query))


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


def fill(connection: Connection, tables: Mapping[str, Sequence[Row]]) -> None:
    """Insert all rows, and empty the transient tables."""
    for table in _PASSING:
        connection.execute(delete(table))
    for table in _ORDER:
        for row in tables.get(table.name, ()):
            connection.execute(insert(table).values(**row))
    _count_on(connection)


def set_position(connection: Connection, position: int) -> None:
    """Number events well above that position, so that listeners miss none."""
    connection.execute(update(event_positions).values(newest=position + _SKIPPED_POSITIONS))


def _count_on(connection: Connection) -> None:
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
