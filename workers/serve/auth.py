"""Authentication in the replica, by a list of keys that the control plane has signed.

A request of the page has a token instead, which the control plane has signed for it a moment ago.

The list is a JWS (RFC 7515) with Ed25519 (RFC 8037) in object storage, read by the thread that follows the
store. A store that does not answer, a list that is not signed, and one that is older than the present one leave
the last valid list in force. There is no cache, because it would save nothing: reading a key, its SHA-256 and a
look into a table take two microseconds, and a key that is wrong takes no longer.
"""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import ValidationError

from cmcl.contract.api.access import (
    KEY_PATTERN,
    OPERATOR_KEY,
    SESSION_TYPE,
    SIGNING_ALGORITHM,
    SNAPSHOT_TYPE,
    KeySnapshot,
    SessionToken,
    SnapshotKey,
    key_id,
)
from cmcl.contract.errors import ObjectNotFound, StorageError
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from workers.serve.errors import NotReady, Unauthorized
from workers.serve.telemetry import LogOnce

logger = logging.getLogger(__name__)

# The algorithm of the token's header is not used: a public key alone must not serve as a secret.
_JWS = jwt.PyJWS(algorithms=[SIGNING_ALGORITHM])
_BLOCK = re.compile(r"-----BEGIN [^-]+-----.*?-----END [^-]+-----", re.DOTALL)
_SCHEME = "bearer"
_KEY = re.compile(KEY_PATTERN)
_NEEDED = "a key is needed: send it as Authorization: Bearer cmcl_..."
# One message for every reason: it must not reveal whether a key exists.
# A token has three parts, and is verified only if it is short.
_DOTS, _LONGEST_TOKEN = 2, 1024
Signed = TypeVar("Signed", KeySnapshot, SessionToken)
_NOT_VALID = "the key is not valid: mistyped, expired, revoked, or without the scope embed"


@dataclass(frozen=True)
class Caller:
    """An authenticated caller.

    `key`: the id of its key, or of its session. `owner`: whose models and collections are visible; None: all of them, as for the
    operator, and for every caller where no keys are required.
    """

    key: str
    owner: str | None

    def sees(self, owner: str | None) -> bool:
        """Whether what that owner has is visible to this caller."""
        return owner is None or self.owns(owner)

    def owns(self, owner: str | None) -> bool:
        """Whether this caller may use what that owner has; what has no owner is the operator's."""
        return self.owner is None or self.owner == owner


class Access(Protocol):
    """Authenticates requests without waiting."""

    def authenticate(self, authorization: str | None) -> Caller:
        """Return the caller of this `Authorization` header. Raises errors.Unauthorized, NotReady."""
        ...

    @property
    def ready(self) -> bool:
        """Whether requests can be authenticated."""
        ...


class AllowAll:
    """No keys are required: every caller is the same, and sees everything."""

    def authenticate(self, authorization: str | None) -> Caller:
        return Caller("", None)

    @property
    def ready(self) -> bool:
        return True


class NotSigned(Exception):
    """A list of keys, or a token, without a valid signature; the message says why."""


def read_public_keys(pem: str) -> tuple[Ed25519PublicKey, ...]:
    """Read all keys of a text with one PEM block or several. Raises ValueError."""
    keys = tuple(_public_key(block) for block in _BLOCK.findall(pem))
    if not keys:
        raise ValueError("it has no block -----BEGIN PUBLIC KEY-----")
    return keys


def verified(
    token: bytes, keys: Sequence[Ed25519PublicKey], model: type[Signed], kind: str
) -> Signed:
    """Return what is signed, if one of these keys has signed it as that kind. Raises NotSigned."""
    for key in keys:
        try:
            found = _JWS.decode_complete(token, key, algorithms=[SIGNING_ALGORITHM])
        except jwt.InvalidSignatureError:
            continue
        except jwt.PyJWTError as error:
            raise NotSigned(f"it is no JWS signed by {SIGNING_ALGORITHM}: {error}") from error
        return _parsed(found, model, kind)
    raise NotSigned("its signature is by none of the public keys that are configured")


def _parsed(found: Mapping[str, Any], model: type[Signed], kind: str) -> Signed:
    declared = found["header"].get("typ")
    if declared != kind:
        raise NotSigned(f"its header says typ {declared!r} and not {kind!r}")
    try:
        return model.model_validate_json(found["payload"])
    except ValidationError as error:
        raise NotSigned(f"it is signed, but not of a known format: {error}") from error


def _public_key(block: str) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(block.encode())
    except ValueError as error:
        raise ValueError(f"a block cannot be read as a public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        kind = type(key).__name__.strip("_")
        raise ValueError(  # noqa: TRY004
            f"a block is a public key of kind {kind}; permitted is Ed25519"
        )
    return key


@dataclass(frozen=True)
class _Entry:
    """A key: its caller, and until when it is valid (seconds since 1970)."""

    caller: Caller
    sha256: str
    until: float


# Compared with where there is no entry, so that timing does not reveal it either. No text has this digest.
_NO_ENTRY = _Entry(Caller("", None), "0" * 64, 0.0)


@dataclass(frozen=True)
class _KeyList:
    """One list, as it was signed. Never changed, only replaced."""

    serial: int
    entries: Mapping[str, _Entry]


class SignedKeys:
    """An `Access`. `refresh` blocks: it is for the thread that follows the store."""

    def __init__(
        self,
        public_keys: Sequence[Ed25519PublicKey],
        refused: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        seconds_between_reads: float = 1.0,
    ) -> None:
        """`refused` is called for each list that is not valid."""
        self._public_keys = public_keys
        self._refused = refused
        self._clock = clock
        self._seconds_between_reads = seconds_between_reads
        self._list: _KeyList | None = None
        # What was read last, and what is wrong with it.
        self._seen = b""
        self._verdict = ""
        self._log = LogOnce(logger, "%s stays as it is: %s")
        self._due = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether a valid list was read."""
        return self._list is not None

    def authenticate(self, authorization: str | None) -> Caller:
        """Return the caller of this header. Raises Unauthorized, and NotReady before the first list."""
        keys = self._list
        if keys is None:
            raise NotReady("this replica has not seen the list of keys yet")
        scheme, _, shown = (authorization or "").partition(" ")
        if scheme.lower() != _SCHEME:
            raise Unauthorized(_NEEDED)
        entry = _match(keys, shown.strip()) or self._session(shown.strip())
        if entry is None or self._clock() >= entry.until:
            raise Unauthorized(_NOT_VALID)
        return entry.caller

    def _session(self, shown: str) -> "_Entry | None":
        """Return the entry of a token; None if it is none."""
        if shown.count(".") != _DOTS or len(shown) > _LONGEST_TOKEN or not shown.isascii():
            return None
        try:
            token = verified(shown.encode(), self._public_keys, SessionToken, SESSION_TYPE)
        except NotSigned:
            return None
        caller = Caller(f"session {token.session}", token.owner)
        return _Entry(caller, _NO_ENTRY.sha256, token.expires_at.timestamp())

    def refresh(self, store: ObjectStore) -> None:
        """Read the list, unless that was a moment ago. Never raises: the last valid list stays in force."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._seconds_between_reads
        if problem := self._read(store):
            self._log.failed("the list of keys", problem)
        else:
            self._log.recovered("the list of keys")

    def _read(self, store: ObjectStore) -> str:
        """Return what is wrong with the stored list; nothing if it is in force now."""
        try:
            token = store.read(layout.key_snapshot())
        except ObjectNotFound:
            return f"{store.uri}/{layout.key_snapshot()} does not exist"
        except StorageError as error:
            return str(error)
        if token != self._seen:
            self._verdict = self._verify(token)
            self._seen = token
        return self._verdict

    def _verify(self, token: bytes) -> str:
        try:
            snapshot = self._checked(token)
        except NotSigned as error:
            self._refused()
            return f"the stored list is not believed: {error}"
        entries = {key.id: _entry(key) for key in snapshot.keys}
        assert self._list is None or self._list.serial <= snapshot.serial, (
            "a list of keys went back"
        )
        self._list = _KeyList(snapshot.serial, entries)
        logger.info("%d keys may ask (list %d)", len(snapshot.keys), snapshot.serial)
        return ""

    def _checked(self, token: bytes) -> KeySnapshot:
        """Raises NotSigned; also for an older list, which may have been kept and put back."""
        snapshot = verified(token, self._public_keys, KeySnapshot, SNAPSHOT_TYPE)
        if self._list is not None and snapshot.serial < self._list.serial:
            raise NotSigned(f"it is list {snapshot.serial}, and list {self._list.serial} was seen")
        return snapshot


def _match(keys: _KeyList, shown: str) -> _Entry | None:
    """Return the entry of this key; the operator's may look like any other."""
    operator = keys.entries.get(OPERATOR_KEY)
    if operator is not None and _fits(operator, shown):
        return operator
    key = _KEY.fullmatch(shown)
    if key is None:
        return None
    entry = keys.entries.get(key_id(key[1]), _NO_ENTRY)
    return entry if _fits(entry, key[2]) else None


def _fits(entry: _Entry, secret: str) -> bool:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return hmac.compare_digest(digest, entry.sha256)


def _entry(key: SnapshotKey) -> _Entry:
    until = key.expires_at.timestamp() if key.expires_at else float("inf")
    return _Entry(Caller(key.id, key.owner), key.sha256, until)
