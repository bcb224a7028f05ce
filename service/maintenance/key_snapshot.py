"""Shows the replicas who may ask: a signed list of keys in object storage, kept as the database is.

Several services may do so at once. What they write comes from the same rows, and one that finds the
list as it should be writes nothing. Each list has a larger serial than the one that it replaces, and
than one whose rows were read earlier: so of two that overtake each other, replicas believe the later
one, and the next round mends the rest. Nothing is remembered that a crash could lose.
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
from service.principal import Scope
from service.stale_database import check_not_lost
from workers.storage import layout

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
# Somebody may have removed or replaced what lies in the store, though no key has changed.
_BETWEEN_CHECKS = timedelta(seconds=30)


class SnapshotWriter:
    """Looks every second whether keys have changed, and writes the list anew if so."""

    def __init__(self, context: Context, signing_key: Ed25519PrivateKey) -> None:
        self._context = context
        self._signing_key = signing_key
        self._changes: int | None = None
        self._checked_at = context.clock()
        self._complaint = ""

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set, the first one at once."""
        self.round()
        while not stop.wait(_PAUSE_SECONDS):
            self.round()

    def round(self) -> None:
        """One look. Never raises: the next one may do better."""
        try:
            self._look()
        except (StaleDatabase, DatabaseError, StorageError) as error:
            self._complain(error)
        except Exception:
            # If this ended the thread, a revoked key would be valid for the replicas for ever.
            self._context.metrics.key_snapshots.labels("failed").inc()
            logger.exception("the list of keys was not written")
        else:
            self._complaint = ""

    def _look(self) -> None:
        now = self._context.clock()
        with self._context.database.read() as connection:
            changes = keys.changes(connection, now)
        if changes != self._changes or now - self._checked_at >= _BETWEEN_CHECKS:
            self._check(now)

    def _check(self, now: datetime) -> None:
        """The store is read before the rows: so what replaces it is never older than it."""
        stored = self._stored()
        with self._context.database.read() as connection:
            # In this order: a change between the two is found in the next round.
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
        # Keys that embed must not stop to because the database that knew them was lost.
        check_not_lost(self._context)
        snapshot = KeySnapshot(serial=serial, issued_at=now, keys=wanted)
        self._context.store.put(layout.key_snapshot(), sign(snapshot, self._signing_key))
        self._context.metrics.key_snapshots.labels("written").inc()
        logger.info("the list of keys for the replicas was written: %d of them", len(wanted))

    def _operator(self) -> tuple[SnapshotKey, ...]:
        key = self._context.settings.admin_key
        if key is None:
            return ()
        digest = sha256(key.get_secret_value())
        return (SnapshotKey(id=OPERATOR_KEY, name=OPERATOR.name, sha256=digest, owner=None),)

    def _complain(self, error: Exception) -> None:
        """Count each time, log once: a store that is away for an hour fills no disk."""
        self._context.metrics.key_snapshots.labels("failed").inc()
        if str(error) != self._complaint:
            self._complaint = str(error)
            logger.warning("the list of keys for the replicas is not up to date: %s", error)


def _serial(now: datetime, stored: KeySnapshot | None) -> int:
    """Milliseconds, so that a list that got lost needs no memory; more if clocks differ."""
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
