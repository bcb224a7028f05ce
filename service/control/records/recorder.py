"""Writes down in object storage what the database alone knows, as soon as it has changed.

Every change leaves a mark in its own transaction. The marks are read first, then the rows, then the
records are written, and only then the marks go. So a record is at least as new as the marks that it
settles, a change that comes meanwhile has a mark of its own, and whatever a process that died has not
done, or only half, the next one does. Of two that write at once (a lease keeps it rare) the slower one
may overwrite newer rows: it finds that somebody has settled its marks, and makes new ones.
"""

import hashlib
import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from cmcl.contract.errors import ObjectNotFound, StorageError
from service.control.context import Context
from service.control.records.document import Record, encode_rows, key_of, write
from service.database.queries import events, leases, records
from service.database.queries.records import Kind, Mark, Tables
from service.errors import DatabaseError
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.5
_PAUSE_AFTER_FAILURE_SECONDS = 5.0
_AT_ONCE = 200
# A bucket answers after tens of milliseconds: one after another, ten thousand would take minutes.
_THREADS = 4
_LEASE = timedelta(minutes=1)
_NAME = "recorder"


class Recorder:
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
        """The oldest marks. Whether there may be more."""
        with self._context.database.read() as connection:
            marks = records.noted(connection, _AT_ONCE)
        if not marks or not self._is_ours():
            return False
        things = sorted({(mark.kind, mark.name) for mark in marks})
        with ThreadPoolExecutor(_THREADS) as threads:
            # As a list: an error in any of them must be heard before the marks go.
            list(threads.map(lambda thing: self._record(*thing), things))
        self._settle(marks, things)
        return len(marks) == _AT_ONCE

    def _record(self, kind: Kind, name: str) -> None:
        with self._context.database.read() as connection:
            tables = records.rows_of(connection, kind, name)
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

    def _settle(self, marks: list[Mark], things: list[tuple[Kind, str]]) -> None:
        with self._context.database.write() as connection:
            if records.settle(connection, marks):
                return
            for kind, name in things:
                records.note(connection, kind, name)

    def _is_ours(self) -> bool:
        now = self._context.clock()
        return self._context.database.settle(
            lambda connection: leases.claim(connection, _NAME, self._name, now, now + _LEASE)
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
