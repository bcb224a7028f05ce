"""A record: rows of the database as one object, with a digest that tells whether it is whole.

A migration that adds a column notes everything, so that it is recorded anew; until that is done, the
column is what a new row has there. An older release refuses records with a column that it lacks:
something would be lost in silence.
"""

import hashlib
import json
import logging
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from sqlalchemy import Column, Table

from cmcl.contract.errors import ObjectNotFound, StorageError
from cmcl.contract.modality import Sha256
from service.context import Context
from service.database.columns import UtcDateTime
from service.database.queries import backup, events, maintenance
from service.database.queries.backup import Kind, OutboxEntry, Row, Tables
from service.database.tables import metadata
from service.errors import Conflict, DatabaseError
from workers.storage import layout
from workers.storage.port import ObjectStore

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.5

_PAUSE_AFTER_FAILURE_SECONDS = 5.0

_AT_ONCE = 200

# A bucket answers after tens of milliseconds: one after another, ten thousand would take minutes.
_THREADS = 4

_LEASE = timedelta(minutes=1)

_NAME = "backup"


class Record(BaseModel):
    """The rows of one model, dataset or version, as of one moment."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    kind: Kind
    name: str
    # Of the newest event then: whoever listens goes on behind it.
    position: int
    # Of the manifest in object storage that belongs to it, byte by byte.
    manifest_sha256: Sha256 | None = None
    tables: dict[str, list[dict[str, JsonValue]]]


class _Sealed(BaseModel):
    """What lies in object storage."""

    sha256: Sha256
    record: dict[str, JsonValue]


class DamagedRecord(Exception):
    """It is not what was written. Says why."""


@dataclass(frozen=True)
class Recorded:
    """A record that was read: rows as the database takes them."""

    tables: Tables
    position: int
    manifest_sha256: str | None

    def rows(self, table: Table) -> list[Row]:
        """Those of one table."""
        return self.tables.get(table.name, [])


def key_of(kind: Kind, name: str) -> str:
    """Where the record lies."""
    if kind == "model":
        return layout.model_record(name)
    if kind == "dataset":
        return layout.dataset_record(name)
    model, _, number = name.rpartition("/")
    return layout.version_record(model, int(number))


def encode_rows(tables: Tables) -> dict[str, list[dict[str, JsonValue]]]:
    """Rows as JSON can say them."""
    return {
        table: [{name: _told(value) for name, value in row.items()} for row in rows]
        for table, rows in tables.items()
    }


def write(record: Record) -> bytes:
    """The record as an object."""
    content = record.model_dump(mode="json")
    return _Sealed(sha256=_digest(content), record=content).model_dump_json().encode()


def read(data: bytes, kind: Kind, name: str) -> Recorded:
    """The record of that very thing. Raises DamagedRecord, and Conflict for a newer release's."""
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


def _told(value: Any) -> JsonValue:
    told: JsonValue = value.isoformat() if isinstance(value, datetime) else value
    return told


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
        return {name: _meant(columns[name], value) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        raise DamagedRecord(f"{table}: {error}") from error


def _meant(column: Column[Any], value: JsonValue) -> Any:
    if isinstance(column.type, UtcDateTime) and value is not None:
        return datetime.fromisoformat(str(value))
    return value


class BackupWriter:
    """One service at a time records for all."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._name = uuid.uuid4().hex
        self._complaint = ""

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set."""
        pause = _PAUSE_SECONDS
        while not stop.wait(pause):
            pause = _PAUSE_SECONDS if self.round() else _PAUSE_AFTER_FAILURE_SECONDS

    def round(self) -> bool:
        """Record all that is marked, unless another service is at it. False if something failed."""
        try:
            while self._record_some():
                pass
        except (DatabaseError, StorageError) as error:
            self._complain(error)
            return False
        except Exception:
            # If this ended the thread, nothing would be recorded for the rest of its life.
            self._context.metrics.records.labels("failed").inc()
            logger.exception("changes were not recorded")
            return False
        self._complaint = ""
        return True

    def _record_some(self) -> bool:
        """The oldest entries. Whether there may be more."""
        with self._context.database.read() as connection:
            entries = backup.pending(connection, _AT_ONCE)
        if not entries or not self._is_ours():
            return False
        things = sorted({(entry.kind, entry.name) for entry in entries})
        with ThreadPoolExecutor(_THREADS) as threads:
            # As a list: an error in any of them must be heard before the entries go.
            list(threads.map(lambda thing: self._record(*thing), things))
        self._settle(entries, things)
        return len(entries) == _AT_ONCE

    def _record(self, kind: Kind, name: str) -> None:
        with self._context.database.read() as connection:
            tables = backup.rows_of(connection, kind, name)
            position = events.newest(connection)
        if not any(tables.values()):
            return
        record = Record(
            kind=kind,
            name=name,
            position=position,
            manifest_sha256=_manifest_digest(self._context.store, kind, name, tables),
            tables=encode_rows(tables),
        )
        self._context.store.put(key_of(kind, name), write(record))
        self._context.metrics.records.labels("written").inc()

    def _settle(self, entries: list[OutboxEntry], things: list[tuple[Kind, str]]) -> None:
        with self._context.database.write() as connection:
            if backup.acknowledge(connection, entries):
                return
            for kind, name in things:
                backup.enqueue(connection, kind, name)

    def _is_ours(self) -> bool:
        now = self._context.clock()
        return self._context.database.settle(
            lambda connection: maintenance.claim_lease(
                connection, _NAME, self._name, now, now + _LEASE
            )
        )

    def _complain(self, error: Exception) -> None:
        """Count each time, log once: a store that is away for an hour fills no disk."""
        self._context.metrics.records.labels("failed").inc()
        if str(error) != self._complaint:
            self._complaint = str(error)
            logger.warning("changes are not recorded for now: %s", error)


def _manifest_digest(store: ObjectStore, kind: Kind, name: str, tables: Tables) -> str | None:
    """None before the manifest is in place, and after it was removed."""
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
    return layout.version_file(model, int(number), layout.MANIFEST)
