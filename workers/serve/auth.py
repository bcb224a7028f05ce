"""Who asks, as a port: the HTTP side need not know where keys come from."""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import ValidationError

from cmcl.contract.access import (
    KEY_PATTERN,
    OPERATOR_KEY,
    SNAPSHOT_ALGORITHM,
    SNAPSHOT_TYPE,
    KeySnapshot,
    SnapshotKey,
    key_id,
)
from cmcl.contract.errors import ObjectNotFound, StorageError
from workers.serve.errors import NotReady, Unauthorized
from workers.serve.log_once import LogOnce
from workers.storage import layout
from workers.storage.port import ObjectStore


@dataclass(frozen=True)
class Caller:
    """Somebody who was let in.

    `key`: what requests are counted and shared by. `owner`: whose models and collections exist for
    them; None: everybody's, as for the operator, and for all where no keys are asked for.
    """

    key: str
    owner: str | None

    def sees(self, owner: str | None) -> bool:
        """Whether a model or collection of that owner exists for this caller."""
        return owner is None or self.owns(owner)

    def owns(self, owner: str | None) -> bool:
        """Whether what that owner has is this caller's to use; of what nobody owns, the operator's."""
        return self.owner is None or self.owner == owner


class Authenticator(Protocol):
    """Decides without waiting for anybody."""

    def authenticate(self, authorization: str | None) -> Caller:
        """Whom the header `Authorization` speaks for. Raises errors.Unauthorized, NotReady."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it knows enough to let anybody in."""
        ...


class AllowAll:
    """Where no keys are asked for."""

    def authenticate(self, authorization: str | None) -> Caller:
        return Caller("", None)

    @property
    def ready(self) -> bool:
        return True


# Whatever the token's header says: with a public key alone nobody can sign by another algorithm.
_JWS = jwt.PyJWS(algorithms=[SNAPSHOT_ALGORITHM])
_BLOCK = re.compile(r"-----BEGIN [^-]+-----.*?-----END [^-]+-----", re.DOTALL)


class NotSigned(Exception):
    """A list of keys that cannot be believed; the message says why."""


def read_public_keys(pem: str) -> tuple[Ed25519PublicKey, ...]:
    """All keys of a text with one PEM block or several. Raises ValueError."""
    keys = tuple(_public_key(block) for block in _BLOCK.findall(pem))
    if not keys:
        raise ValueError("it has no block -----BEGIN PUBLIC KEY-----")
    return keys


def verified(token: bytes, keys: Sequence[Ed25519PublicKey]) -> KeySnapshot:
    """The list, if one of these keys has signed it. Raises NotSigned."""
    for key in keys:
        try:
            found = _JWS.decode_complete(token, key, algorithms=[SNAPSHOT_ALGORITHM])
        except jwt.InvalidSignatureError:
            continue
        except jwt.PyJWTError as error:
            raise NotSigned(f"it is no JWS signed by {SNAPSHOT_ALGORITHM}: {error}") from error
        return _parsed(found["payload"], found["header"].get("typ"))
    raise NotSigned("its signature is by none of the public keys that are believed here")


def _parsed(payload: bytes, kind: object) -> KeySnapshot:
    if kind != SNAPSHOT_TYPE:
        raise NotSigned(f"its header says typ {kind!r} and not {SNAPSHOT_TYPE!r}")
    try:
        return KeySnapshot.model_validate_json(payload)
    except ValidationError as error:
        raise NotSigned(
            f"it is signed, but no list of a form that is known here: {error}"
        ) from error


def _public_key(block: str) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(block.encode())
    except ValueError as error:
        raise ValueError(f"a block cannot be read as a public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        kind = type(key).__name__.strip("_")
        raise ValueError(  # noqa: TRY004
            f"a block is a public key of another kind ({kind}); permitted is Ed25519"
        )
    return key


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
_NO_ENTRY = _Entry(Caller("", None), "0" * 64, 0.0)


@dataclass(frozen=True)
class _KeyList:
    """One list, as it was signed. It is never changed, only exchanged."""

    serial: int
    entries: Mapping[str, _Entry]


class SignedKeys:
    """A `Authenticator`: `authenticate` waits for nobody, `refresh` is for the thread that follows the store."""

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
        self._book: _KeyList | None = None
        # What was read last, and what is wrong with it.
        self._seen = b""
        self._verdict = ""
        self._log = LogOnce(logger, "%s stays as it is: %s")
        self._due = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether a list was seen that can be believed."""
        return self._book is not None

    def authenticate(self, authorization: str | None) -> Caller:
        """Whom the header speaks for. Raises Unauthorized, and NotReady before the first list."""
        keys_ = self._book
        if keys_ is None:
            raise NotReady("this replica has not seen the list of keys yet")
        scheme, _, shown = (authorization or "").partition(" ")
        if scheme.lower() != _SCHEME:
            raise Unauthorized(_NEEDED)
        entry = _match(keys_, shown.strip())
        if entry is None or self._clock() >= entry.until:
            raise Unauthorized(_NOT_VALID)
        return entry.caller

    def refresh(self, store: ObjectStore) -> None:
        """Read the list, unless that was a moment ago. Never raises: the last good one goes on."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._seconds_between_reads
        if problem := self._read(store):
            self._log.failed("the list of keys", problem)
        else:
            self._log.recovered("the list of keys")

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


def _match(keys_: _KeyList, shown: str) -> _Entry | None:
    """The entry that the shown text is the key of; the operator's may look like any other."""
    operator = keys_.entries.get(OPERATOR_KEY)
    if operator is not None and _fits(operator, shown):
        return operator
    key = _KEY.fullmatch(shown)
    if key is None:
        return None
    entry = keys_.entries.get(key_id(key[1]), _NO_ENTRY)
    return entry if _fits(entry, key[2]) else None


def _fits(entry: _Entry, secret: str) -> bool:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return hmac.compare_digest(digest, entry.sha256)


def _book(snapshot: KeySnapshot) -> _KeyList:
    return _KeyList(snapshot.serial, {key.id: _entry(key) for key in snapshot.keys})


def _entry(key: SnapshotKey) -> _Entry:
    until = key.expires_at.timestamp() if key.expires_at else float("inf")
    return _Entry(Caller(key.id, key.owner), key.sha256, until)
