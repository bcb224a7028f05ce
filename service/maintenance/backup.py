"""Backup: rows that exist in the database alone, written to object storage as records, documents with a checksum (`cmcl.storage.documents`).

A record has the rows of one model or dataset. A migration that adds a column enqueues everything, so that all records are
written again; until then a rebuild takes the column's default. An older release refuses records with a column that it
does not have: it would lose values without a sign.
"""

import json
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cmcl.contract.errors import InvalidVersion, StorageError
from cmcl.storage import layout
from cmcl.storage.documents import with_checksum, without_checksum
from service.context import Context
from service.core.errors import Conflict, DatabaseError
from service.core.loops import OutageLog, PeriodicLoop
from service.database.queries import backup, events
from service.database.queries.backup import Kind, OutboxEntry, Row, Tables
from service.database.tables import UtcDateTime, metadata
from service.jobs.leases import Lease

logger = logging.getLogger(__name__)

_PAUSE_AFTER_FAILURE_SECONDS = 5.0
_AT_ONCE = 200
# A bucket takes tens of milliseconds for a request: ten thousand in sequence would take minutes.
_THREADS = 4
_FORMAT = 1


class DamagedRecord(Exception):
    """The object is not what was written; the message says why."""


@dataclass(frozen=True)
class Record:
    """The rows of one model or dataset at one time, as the database takes them.

    `position`: of the newest event at that time; listeners continue after it.
    """

    tables: Tables
    position: int


def key_of(kind: Kind, name: str) -> str:
    """The key of a record in the store."""
    return layout.model_record(name) if kind == "model" else layout.dataset_record(name)


def encode(record: Record, kind: Kind, name: str) -> bytes:
    """Serialize a record."""
    content = {"format": _FORMAT, "kind": kind, "name": name, **vars(record)}
    return with_checksum(
        json.dumps(content, default=datetime.isoformat).encode(), key_of(kind, name)
    )


def decode(data: bytes, kind: Kind, name: str) -> Record:
    """Parse the record of that kind and name. Raises DamagedRecord, and Conflict for one of a newer release."""
    try:
        found = json.loads(without_checksum(data, key_of(kind, name)))
        format_ = found["format"]
    except (InvalidVersion, ValueError, KeyError, TypeError) as error:
        raise DamagedRecord(f"it cannot be read: {error}") from error
    if format_ != _FORMAT:
        raise Conflict(f"records have the format {format_}: rebuild with a newer release")
    tables = {table: [_row(table, row) for row in rows] for table, rows in found["tables"].items()}
    return Record(tables, found["position"])


def _row(name: str, values: Mapping[str, Any]) -> Row:
    table = metadata.tables.get(name)
    columns = {} if table is None else {column.name: column.type for column in table.columns}
    unknown = sorted(values.keys() - columns.keys())
    if unknown:
        raise Conflict(
            f"records were written by a newer release ({name} has no {', '.join(unknown)} here): "
            "rebuild with that one"
        )
    return {
        column: datetime.fromisoformat(value)
        if value is not None and isinstance(columns[column], UtcDateTime)
        else value
        for column, value in values.items()
    }


class BackupWriter(PeriodicLoop):
    """Writes records for all instances, one instance at a time. A record that cannot be written holds no other one.

    Every change adds an entry to the outbox in its own transaction. The entries are read first, then the rows; then the
    records are written, and only then the entries are removed. So a record is at least as new as the entries that it
    settles, a change in between has an entry of its own, and what a process that died left undone, or half done, the next
    one does. Of two that write at once (the lease makes it rare) the slower one may overwrite newer rows: it finds its
    entries removed, and adds new ones.
    """

    name = "backup"
    pause_seconds = 0.5

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        # Less than half of a model's lease, the least that remains of one: after a crash, records are written again
        # before another instance goes on with a model, and no version learns a dataset that has none.
        duration = timedelta(seconds=context.tuning.lease_seconds / 5)
        self.lease = Lease(context, self.name, duration)
        self._outage = OutageLog(logger, "changes are not backed up; will retry")

    def release(self) -> None:
        """See Loop."""
        self.lease.release()

    def step(self, stop: threading.Event) -> float:
        """See PeriodicLoop."""
        return self.pause_seconds if self.round() else _PAUSE_AFTER_FAILURE_SECONDS

    def round(self) -> bool:
        """Write a record for every entry, unless another instance holds the lease. False if something failed."""
        try:
            while self._write_some():
                self.beat()
        except (DatabaseError, StorageError) as error:
            self._context.metrics.records.labels("failed").inc()
            self._outage.failed(error)
            return False
        except Exception:
            self._context.metrics.records.labels("failed").inc()
            logger.exception("changes are not backed up; will retry")
            return False
        self._outage.recovered()
        return True

    def _write_some(self) -> bool:
        """Write records for the oldest entries, and remove these. Return whether there may be more.

        Raises the first failure after the others are written.
        """
        with self._context.database.read() as connection:
            entries = backup.pending(connection, _AT_ONCE)
        if not entries or not self.lease.acquire():
            return False
        # Only the newest entry of a record that fails is kept: more would keep those of others out of the next round.
        newest = {(entry.kind, entry.name): entry for entry in entries}
        with ThreadPoolExecutor(_THREADS) as threads:
            errors = dict(
                zip(newest, threads.map(self._try_to_write, newest.values()), strict=True)
            )
        failed = [newest[thing] for thing, error in errors.items() if error is not None]
        settled = [entry for entry in entries if entry not in failed]
        if settled:
            with self._context.database.write() as connection:
                if not backup.acknowledge(connection, settled):
                    for kind, name in (thing for thing, error in errors.items() if error is None):
                        backup.enqueue(connection, kind, name)
        for error in filter(None, errors.values()):
            raise error
        return len(entries) == _AT_ONCE

    def _try_to_write(self, entry: OutboxEntry) -> Exception | None:
        """Write a record and return None, or the error."""
        try:
            with self._context.database.read() as connection:
                tables = backup.rows_of(connection, entry.kind, entry.name)
                record = Record(tables, events.newest(connection))
            if any(tables.values()):
                data = encode(record, entry.kind, entry.name)
                self._context.store.put(key_of(entry.kind, entry.name), data)
                self._context.metrics.records.labels("written").inc()
        except Exception as error:  # noqa: BLE001 - raised by the caller, after the others
            return error
        return None
