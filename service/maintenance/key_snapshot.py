"""The signed list of keys in object storage, by which replicas of the embeddings endpoint authenticate requests.

Several replicas of the control plane may write it at once: all write what the same rows say, and one that finds the
list up to date writes nothing. Each list has a larger serial than the one that it replaces, and than one whose rows
were read earlier. So of two that overtake each other the endpoint takes the later one, and the next round corrects
the rest. No state is kept that a crash could lose.
"""

import logging
import threading
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cmcl.contract.access import OPERATOR_KEY, KeySnapshot, SnapshotKey
from cmcl.contract.errors import ObjectNotFound, StorageError
from service.auth.keys import OPERATOR, sha256
from service.auth.signing import read_signed, sign
from service.context import Context
from service.database.queries import keys
from service.database.queries.keys import KeyRecord
from service.errors import DatabaseError, StaleDatabase
from service.loops import OutageLog, PeriodicLoop
from service.principal import Scope
from service.stale_database import check_not_lost
from workers.storage import layout

logger = logging.getLogger(__name__)

# The object may have been removed or replaced although no key has changed.
_BETWEEN_CHECKS = timedelta(seconds=30)


class SnapshotWriter(PeriodicLoop):
    """Writes the list again within a second of a change of keys."""

    name = "keys"
    pause_seconds = 1.0
    starts_at_once = True

    def __init__(self, context: Context, signing_key: Ed25519PrivateKey) -> None:
        super().__init__()
        self._context = context
        self._signing_key = signing_key
        self._changes: int | None = None
        self._checked_at = context.clock()
        self._outage = OutageLog(logger, "the list of keys for the endpoint is not up to date")

    def step(self, stop: threading.Event) -> float:
        """See PeriodicLoop."""
        self.round()
        return self.pause_seconds

    def round(self) -> None:
        """Write the list if it is not up to date. Errors are counted and logged."""
        try:
            self._look()
        except (StaleDatabase, DatabaseError, StorageError) as error:
            self._context.metrics.key_snapshots.labels("failed").inc()
            self._outage.failed(error)
        except Exception:
            self._context.metrics.key_snapshots.labels("failed").inc()
            logger.exception("the list of keys was not written; will retry")
        else:
            self._outage.recovered()

    def _look(self) -> None:
        now = self._context.clock()
        with self._context.database.read() as connection:
            changes = keys.changes(connection, now)
        if changes != self._changes or now - self._checked_at >= _BETWEEN_CHECKS:
            self._check(now)

    def _check(self, now: datetime) -> None:
        """Read the store before the rows, so that what replaces the list is never older than it."""
        stored = self._stored()
        with self._context.database.read() as connection:
            # In this order: a change between the two queries is found by the next round.
            changes = keys.changes(connection, now)
            records = keys.valid(connection, now)
        wanted = (*self._operator(), *(_entry(each) for each in records if _may_embed(each)))
        if stored is None or stored.keys != wanted:
            self._write(wanted, _serial(now, stored), now)
        self._changes, self._checked_at = changes, now

    def _stored(self) -> KeySnapshot | None:
        try:
            token = self._context.store.read(layout.key_snapshot())
        except ObjectNotFound:
            return None
        return read_signed(token, self._signing_key)

    def _write(self, wanted: tuple[SnapshotKey, ...], serial: int, now: datetime) -> None:
        # Keys with the scope embed must stay valid although the database that held them was lost.
        check_not_lost(self._context)
        snapshot = KeySnapshot(serial=serial, issued_at=now, keys=wanted)
        self._context.store.put(layout.key_snapshot(), sign(snapshot, self._signing_key))
        self._context.metrics.key_snapshots.labels("written").inc()
        logger.info("wrote the list of keys for the endpoint: %d keys", len(wanted))

    def _operator(self) -> tuple[SnapshotKey, ...]:
        key = self._context.settings.admin_key
        if key is None:
            return ()
        digest = sha256(key.get_secret_value())
        return (SnapshotKey(id=OPERATOR_KEY, name=OPERATOR.name, sha256=digest, owner=None),)


def _serial(now: datetime, stored: KeySnapshot | None) -> int:
    """Milliseconds of the clock, so that the serial of a lost list is not needed; larger if clocks differ."""
    milliseconds = int(now.timestamp() * 1000)
    return milliseconds if stored is None else max(milliseconds, stored.serial + 1)


def _may_embed(record: KeyRecord) -> bool:
    return Scope.EMBED in record.scopes


def _entry(record: KeyRecord) -> SnapshotKey:
    return SnapshotKey(
        id=record.id,
        name=record.name,
        sha256=record.secret_sha256,
        owner=record.owner,
        expires_at=record.expires_at,
    )
