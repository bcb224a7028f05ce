"""Backup: rows that exist in the database alone, written to object storage as records with a digest.

A record has the rows of one model, dataset or version. A migration that adds a column enqueues everything, so that
all records are written again; until then a rebuild takes the column's default. An older release refuses records with
a column that it does not have: it would lose values without a sign.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from sqlalchemy import Column, Table

from cmcl.contract.errors import ObjectNotFound, StorageError
from cmcl.contract.modality import Sha256
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from service.context import Context
from service.core.errors import Conflict, DatabaseError
from service.core.loops import OutageLog, PeriodicLoop
from service.database.columns import UtcDateTime
from service.database.queries import backup, events
from service.database.queries.backup import Kind, OutboxEntry, Row, Tables
from service.database.tables import metadata
from service.jobs.leases import Lease

logger = logging.getLogger(__name__)

_PAUSE_AFTER_FAILURE_SECONDS = 5.0
_AT_ONCE = 200
# A bucket takes tens of milliseconds for a request: ten thousand in sequence would take minutes.
_THREADS = 4
# How long a response waits for a record. An outage of object storage must not delay what the database can answer.
_WAIT_SECONDS = 1.0
_AT_REQUESTS = threading.BoundedSemaphore(4)


class Record(BaseModel):
    """The rows of one model, dataset or version at one time."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    kind: Kind
    name: str
    # Position of the newest event at that time: listeners continue after it.
    position: int
    # Digest of the bytes of its manifest in object storage.
    manifest_sha256: Sha256 | None = None
    tables: dict[str, list[dict[str, JsonValue]]]


class _Sealed(BaseModel):
    """The object in the store."""

    sha256: Sha256
    record: dict[str, JsonValue]


class DamagedRecord(Exception):
    """The object is not what was written; the message says why."""


@dataclass(frozen=True)
class Recorded:
    """A record that was read, with rows as the database takes them."""

    tables: Tables
    position: int
    manifest_sha256: str | None

    def rows(self, table: Table) -> list[Row]:
        """The rows of one table."""
        return self.tables.get(table.name, [])


def key_of(kind: Kind, name: str) -> str:
    """The key of a record in the store."""
    if kind == "model":
        return layout.model_record(name)
    if kind == "dataset":
        return layout.dataset_record(name)
    model, _, number = name.rpartition("/")
    return layout.version_record(model, int(number))


def encode_rows(tables: Tables) -> dict[str, list[dict[str, JsonValue]]]:
    """Rows with values that JSON has."""
    return {
        table: [{name: _jsonable(value) for name, value in row.items()} for row in rows]
        for table, rows in tables.items()
    }


def write(record: Record) -> bytes:
    """Serialize a record."""
    content = record.model_dump(mode="json")
    return _Sealed(sha256=_digest(content), record=content).model_dump_json().encode()


def read(data: bytes, kind: Kind, name: str) -> Recorded:
    """Parse the record of that kind and name. Raises DamagedRecord, and Conflict for one of a newer release."""
    found = _opened(data)
    if (found.kind, found.name) != (kind, name):
        raise DamagedRecord(f"it is of {found.kind} {found.name}")
    tables = {
        table: [_row(table, values) for values in rows] for table, rows in found.tables.items()
    }
    return Recorded(tables, found.position, found.manifest_sha256)


def _opened(data: bytes) -> Record:
    try:
        sealed = _Sealed.model_validate_json(data)
        if _digest(sealed.record) != sealed.sha256:
            raise DamagedRecord("it is not what was written (SHA-256)")
        return Record.model_validate(sealed.record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedRecord(f"{where or 'JSON'}: {first['msg']}") from error


def _digest(content: Mapping[str, JsonValue]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _jsonable(value: Any) -> JsonValue:
    encoded: JsonValue = value.isoformat() if isinstance(value, datetime) else value
    return encoded


def _row(table: str, values: Mapping[str, JsonValue]) -> Row:
    known = metadata.tables.get(table)
    columns = {} if known is None else {column.name: column for column in known.columns}
    unknown = sorted(values.keys() - columns.keys())
    if unknown:
        raise Conflict(
            f"records were written by a newer release ({table} has no {', '.join(unknown)} here): "
            "rebuild with that one"
        )
    try:
        return {name: _decoded(columns[name], value) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        raise DamagedRecord(f"{table}: {error}") from error


def _decoded(column: Column[Any], value: JsonValue) -> Any:
    if isinstance(column.type, UtcDateTime) and value is not None:
        return datetime.fromisoformat(str(value))
    return value


class BackupWriter(PeriodicLoop):
    """Writes records for all replicas, one replica at a time. A record that cannot be written holds no other one.

    Every change adds an entry to the outbox in its own transaction. The entries are read first, then the rows;
    then the records are written, and only then the entries are removed. So a record is at least as new as the
    entries that it settles, a change in between has an entry of its own, and what a process that died left undone,
    or half done, the next one does. Of two that write at once (the lease makes it rare; a request
    also writes) the slower one may overwrite
    newer rows: it finds its entries removed, and adds new ones.
    """

    name = "backup"
    pause_seconds = 0.5

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        duration = timedelta(seconds=context.tuning.lease_seconds)
        self.lease = Lease(context, self.name, duration)
        self._outage = OutageLog(logger, "changes are not backed up; will retry")

    def release(self) -> None:
        """See Loop."""
        self.lease.release()

    def step(self, stop: threading.Event) -> float:
        """See PeriodicLoop."""
        return self.pause_seconds if self.round() else _PAUSE_AFTER_FAILURE_SECONDS

    def round(self) -> bool:
        """Write a record for every entry, unless another replica holds the lease. False if something failed."""
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
        """Write records for the oldest entries. Return whether there may be more."""
        with self._context.database.read() as connection:
            entries = backup.pending(connection, _AT_ONCE)
        if not entries or not self.lease.acquire():
            return False
        _write_records(self._context, entries)
        return len(entries) == _AT_ONCE


def write_before_response(context: Context, model: str) -> None:
    """Write the record of a model whose change was just committed, so that a lost database does not lose the change.

    A response waits for this, at most a second. What fails or takes longer is left to BackupWriter.
    """

    def work() -> None:
        try:
            with context.database.read() as connection:
                entries = backup.pending(connection, _AT_ONCE, ("model", model))
            if entries:
                _write_records(context, entries)
        except (DatabaseError, StorageError) as error:
            logger.warning(
                "the record of model %s is not written yet; will retry: %s", model, error
            )
        except Exception:
            logger.exception("the record of model %s is not written yet; will retry", model)
        finally:
            _AT_REQUESTS.release()

    if _AT_REQUESTS.acquire(blocking=False):
        # A daemon: a call that hangs must not keep the process from exiting.
        thread = threading.Thread(target=work, name="backup-before-response", daemon=True)
        thread.start()
        thread.join(_WAIT_SECONDS)


def _write_records(context: Context, entries: list[OutboxEntry]) -> None:
    """Write the records that the entries name, and remove the entries. Raises the first failure after the others."""
    things = sorted({(entry.kind, entry.name) for entry in entries})
    with ThreadPoolExecutor(_THREADS) as threads:
        errors = threads.map(partial(_try_to_write, context), things)
        failures = dict(zip(things, errors, strict=True))
    # Of a record that failed, one entry is enough: more would keep those of others out of the next round.
    newest = {(entry.kind, entry.name): entry for entry in entries}
    kept = [newest[thing] for thing, error in failures.items() if error is not None]
    settled = [entry for entry in entries if entry not in kept]
    if settled:
        with context.database.write() as connection:
            if not backup.acknowledge(connection, settled):
                for kind, name in (thing for thing, error in failures.items() if error is None):
                    backup.enqueue(connection, kind, name)
    for error in filter(None, failures.values()):
        raise error


def _try_to_write(context: Context, thing: tuple[Kind, str]) -> Exception | None:
    """Write a record and return None, or the error."""
    try:
        _write(context, *thing)
    except Exception as error:  # noqa: BLE001 - raised by the caller, after the others
        return error
    return None


def _write(context: Context, kind: Kind, name: str) -> None:
    with context.database.read() as connection:
        tables = backup.rows_of(connection, kind, name)
        position = events.newest(connection)
    if not any(tables.values()):
        return
    record = Record(
        kind=kind,
        name=name,
        position=position,
        manifest_sha256=_manifest_digest(context.store, kind, name, tables),
        tables=encode_rows(tables),
    )
    context.store.put(key_of(kind, name), write(record))
    context.metrics.records.labels("written").inc()


def _manifest_digest(store: ObjectStore, kind: Kind, name: str, tables: Tables) -> str | None:
    """Digest of the manifest; None before it is stored, and after it was removed."""
    if kind == "model":
        return None
    if kind == "version" and tables["versions"][0]["stored_at"] is None:
        return None
    try:
        return hashlib.sha256(store.read(_manifest_key(kind, name))).hexdigest()
    except ObjectNotFound:
        return None


def _manifest_key(kind: Kind, name: str) -> str:
    if kind == "dataset":
        return layout.dataset_manifest(name)
    model, _, number = name.rpartition("/")
    return layout.version_manifest(model, int(number))
