"""Keys checked in the replica, against a list that the control plane has signed.

The list is read from object storage by whoever follows the store. A store that does not answer, a
list that is not signed and one that is older than ours leave the last good one in force. Without a
cache, because there is nothing to save: reading a key, its SHA-256 and a look into a table take two
microseconds, and a key that is wrong takes no other way.
"""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cmcl.contract.access import (
    KEY_PATTERN,
    OPERATOR_KEY,
    KeySnapshot,
    SnapshotKey,
    key_id,
)
from cmcl.contract.errors import ObjectNotFound, StorageError
from workers.serve.access.port import Caller
from workers.serve.access.signatures import NotSigned, verified
from workers.serve.errors import NotReady, Unauthorized
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

_SCHEME = "bearer"
_KEY = re.compile(KEY_PATTERN)
_NEEDED = "a key is needed: send it as Authorization: Bearer cmcl_..."
# The same words for everything: they must not tell whether a key exists.
_NOT_VALID = "the key is not valid: mistyped, expired, revoked, or without the scope embed"


@dataclass(frozen=True)
class _Entry:
    """Whom a key lets in, and until when (seconds since 1970)."""

    caller: Caller
    sha256: str
    until: float


# Compared with where there is no entry: time must not tell either. No text has this digest.
_NOBODY = _Entry(Caller("", None), "0" * 64, 0.0)


@dataclass(frozen=True)
class _Book:
    """One list, as it was signed. It is never changed, only exchanged."""

    serial: int
    entries: Mapping[str, _Entry]


class SignedKeys:
    """A `Doorkeeper`: `admit` waits for nobody, `refresh` is for the thread that follows the store."""

    def __init__(
        self,
        public_keys: Sequence[Ed25519PublicKey],
        refused: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        seconds_between_reads: float = 1.0,
    ) -> None:
        """`refused` is called for each list that was not believed."""
        self._public_keys = public_keys
        self._refused = refused
        self._clock = clock
        self._seconds_between_reads = seconds_between_reads
        self._book: _Book | None = None
        # What was read last, and what is wrong with it.
        self._seen = b""
        self._verdict = ""
        self._complaint = ""
        self._due = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether a list was seen that can be believed."""
        return self._book is not None

    def admit(self, authorization: str | None) -> Caller:
        """Whom the header speaks for. Raises Unauthorized, and NotReady before the first list."""
        book = self._book
        if book is None:
            raise NotReady("this replica has not seen the list of keys yet")
        scheme, _, shown = (authorization or "").partition(" ")
        if scheme.lower() != _SCHEME:
            raise Unauthorized(_NEEDED)
        entry = _match(book, shown.strip())
        if entry is None or self._clock() >= entry.until:
            raise Unauthorized(_NOT_VALID)
        return entry.caller

    def refresh(self, store: ObjectStore) -> None:
        """Read the list, unless that was a moment ago. Never raises: the last good one goes on."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._seconds_between_reads
        complaint = self._read(store)
        # Once, and not with every look: a store that is away for an hour fills no disk.
        if complaint and complaint != self._complaint:
            logger.warning("the list of keys stays as it is: %s", complaint)
        self._complaint = complaint

    def _read(self, store: ObjectStore) -> str:
        """What is wrong with what lies there, in words; nothing if it is in force now."""
        try:
            token = store.read(layout.key_snapshot())
        except ObjectNotFound:
            return f"{store.uri}/{layout.key_snapshot()} does not exist"
        except StorageError as error:
            return str(error)
        if token != self._seen:
            self._verdict = self._take(token)
            self._seen = token
        return self._verdict

    def _take(self, token: bytes) -> str:
        try:
            snapshot = self._believable(token)
        except NotSigned as error:
            self._refused()
            return f"what lies there is not believed: {error}"
        self._book = _book(snapshot)
        logger.info("%d keys may ask (list %d)", len(snapshot.keys), snapshot.serial)
        return ""

    def _believable(self, token: bytes) -> KeySnapshot:
        """Raises NotSigned; also for an old list, which somebody may have kept and put back."""
        snapshot = verified(token, self._public_keys)
        if self._book is not None and snapshot.serial < self._book.serial:
            raise NotSigned(f"it is list {snapshot.serial}, and list {self._book.serial} was seen")
        return snapshot


def _match(book: _Book, shown: str) -> _Entry | None:
    """The entry that the shown text is the key of; the operator's may look like any other."""
    operator = book.entries.get(OPERATOR_KEY)
    if operator is not None and _fits(operator, shown):
        return operator
    key = _KEY.fullmatch(shown)
    if key is None:
        return None
    entry = book.entries.get(key_id(key[1]), _NOBODY)
    return entry if _fits(entry, key[2]) else None


def _fits(entry: _Entry, secret: str) -> bool:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return hmac.compare_digest(digest, entry.sha256)


def _book(snapshot: KeySnapshot) -> _Book:
    return _Book(snapshot.serial, {key.id: _entry(key) for key in snapshot.keys})


def _entry(key: SnapshotKey) -> _Entry:
    until = key.expires_at.timestamp() if key.expires_at else float("inf")
    return _Entry(Caller(key.id, key.owner), key.sha256, until)
