"""The signed list of keys in object storage, by which replicas of the embeddings endpoint authenticate requests.

Several instances of the control plane may write it at once: all write what the same rows say, and one that finds the
list up to date writes nothing. Each list has a larger serial than the one that it replaces, and than one whose rows
were read earlier. So of two that overtake each other the endpoint takes the later one, and the next round corrects
the rest. No state is kept that a crash could lose.
"""

import logging
import threading
from datetime import datetime, timedelta

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from cmcl.contract.api.access import (
    OPERATOR_KEY,
    SIGNING_ALGORITHM,
    SNAPSHOT_TYPE,
    KeySnapshot,
    Scope,
    SnapshotKey,
)
from cmcl.contract.errors import ObjectNotFound, StorageError
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from service.auth.keys import OPERATOR, sha256
from service.auth.signing import JWS, sign
from service.core.clock import Clock
from service.core.errors import DatabaseError, StaleDatabase
from service.core.loops import OutageLog, PeriodicLoop
from service.core.settings import Settings
from service.database.engine import Database
from service.database.queries import keys
from service.database.queries.keys import KeyRow
from service.database.stale import check_not_stale
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# The object may have been removed or replaced although no key has changed.
_BETWEEN_CHECKS = timedelta(seconds=30)


def read_signed(token: bytes, key: Ed25519PrivateKey) -> KeySnapshot | None:
    """The snapshot; None if it was not signed with this key or cannot be read."""
    try:
        payload = JWS.decode(token, key.public_key(), algorithms=[SIGNING_ALGORITHM])
        return KeySnapshot.model_validate_json(payload)
    except (jwt.PyJWTError, ValidationError):
        return None


class SnapshotWriter(PeriodicLoop):
    """Writes the list again within a second of a change of keys."""

    name = "keys"
    pause_seconds = 1.0
    starts_at_once = True

    def __init__(
        self,
        signing_key: Ed25519PrivateKey,
        settings: Settings,
        store: ObjectStore,
        database: Database,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        super().__init__()
        self._settings, self._store, self._database = settings, store, database
        self._written = metrics.key_snapshots
        self._clock = clock
        self._signing_key = signing_key
        self._changes: int | None = None
        self._checked_at = clock()
        self._outage = OutageLog(logger, "the list of keys for the endpoint is not up to date")

    def step(self, stop: threading.Event) -> float:
        self.round()
        return self.pause_seconds

    def round(self) -> None:
        """Write the list if it is not up to date. Errors are counted and logged."""
        try:
            self._write_if_changed()
        except (StaleDatabase, DatabaseError, StorageError) as error:
            self._written.labels("failed").inc()
            self._outage.failed(error)
        except Exception:
            self._written.labels("failed").inc()
            logger.exception("the list of keys was not written; will retry")
        else:
            self._outage.recovered()

    def _write_if_changed(self) -> None:
        now = self._clock()
        with self._database.read() as connection:
            changes = keys.changes(connection, now)
        if changes != self._changes or now - self._checked_at >= _BETWEEN_CHECKS:
            self._check(now)

    def _check(self, now: datetime) -> None:
        """Read the store before the rows, so that what replaces the list is never older than it."""
        stored = self._stored()
        with self._database.read() as connection:
            # In this order: a change between the two queries is found by the next round.
            changes = keys.changes(connection, now)
            rows = keys.valid(connection, now)
        wanted = (*self._operator(), *(_entry(each) for each in rows if _may_embed(each)))
        if stored is None or stored.keys != wanted:
            self._write(wanted, _serial(now, stored), now)
        self._changes, self._checked_at = changes, now

    def _stored(self) -> KeySnapshot | None:
        try:
            token = self._store.read(layout.key_snapshot())
        except ObjectNotFound:
            return None
        return read_signed(token, self._signing_key)

    def _write(self, wanted: tuple[SnapshotKey, ...], serial: int, now: datetime) -> None:
        # Keys with the scope embed must stay valid although the database that held them was lost.
        check_not_stale(self._store, self._database)
        assert len({each.id for each in wanted}) == len(wanted), "two keys with one id"
        snapshot = KeySnapshot(serial=serial, issued_at=now, keys=wanted)
        token = sign(snapshot, SNAPSHOT_TYPE, self._signing_key)
        self._store.put(layout.key_snapshot(), token.encode())
        self._written.labels("written").inc()
        logger.info("wrote the list of keys for the endpoint: %d keys", len(wanted))

    def _operator(self) -> tuple[SnapshotKey, ...]:
        key = self._settings.admin_key
        if key is None:
            return ()
        digest = sha256(key.get_secret_value())
        return (SnapshotKey(id=OPERATOR_KEY, name=OPERATOR.name, sha256=digest, owner=None),)


def _serial(now: datetime, stored: KeySnapshot | None) -> int:
    """Milliseconds of the clock, so that the serial of a lost list is not needed; larger if clocks differ."""
    milliseconds = int(now.timestamp() * 1000)
    return milliseconds if stored is None else max(milliseconds, stored.serial + 1)


def _may_embed(row: KeyRow) -> bool:
    return Scope.EMBED in row.scopes


def _entry(row: KeyRow) -> SnapshotKey:
    return SnapshotKey(
        id=row.id,
        name=row.name,
        sha256=row.secret_sha256,
        owner=row.owner,
        expires_at=row.expires_at,
    )
