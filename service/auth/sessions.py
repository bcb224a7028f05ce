"""Sessions of the page: a browser signs in once with a key or a token, and then sends a cookie.

The cookie's value is `<id>.<secret>`, of which only the digest of the secret is stored. It is not a key: `/v1` does not
accept it. A session has the owner and the name of what it was started with, and some or all of its scopes. It ends when
it is signed out, when its key is revoked, and after twelve hours. The digest of an operator's session includes
the operator's key, so that a session ends where that key is replaced.

The page asks the embeddings endpoint with a token on behalf of a session. It is signed with the key that signs the list
of keys, and says so in its type: neither passes for the other.
"""

import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, and_

from cmcl.contract.api.access import SESSION_TYPE, Scope, SessionToken
from service.auth.authenticator import Caller, KeyCache, write_use
from service.auth.keys import OPERATOR, sha256
from service.auth.signing import sign
from service.core.clock import Clock
from service.core.errors import FieldProblem, Forbidden, NotFound, Unauthorized
from service.core.principal import Principal
from service.core.settings import Settings
from service.database.engine import Database
from service.database.queries import keys, sessions
from service.database.queries.sessions import Condition, SessionRow

# Longer than a request may take, with some room for clocks that differ.
_TOKEN_SECONDS = 60
_SECRET_BYTES = 32
_TEXT = re.compile(r"((?:ses|ops)-[0-9a-f]{12})\.([A-Za-z0-9_-]{43})")
_OF_OPERATOR = "ops-"
_NO_DIGEST = sha256("")
_NOT_VALID = "the session has ended; sign in again"
# Sessions of one key, or one holder of tokens: a further one ends the oldest.
MOST_OF_HOLDER = 20
_MOST_LISTED = 200
_LONGEST_AGENT = 200
# A working day; then a key or an issuer has to vouch again.
_LONGEST = timedelta(hours=12)


class SessionTokens:
    """Signs a token for each request."""

    def __init__(self, signing_key: Ed25519PrivateKey, clock: Clock) -> None:
        self._signing_key = signing_key
        self._clock = clock

    def authorization(self, principal: Principal, session: str) -> str:
        """The header `Authorization` of a request for this principal, whose session has that id."""
        expires_at = self._clock() + timedelta(seconds=_TOKEN_SECONDS)
        token = SessionToken(session=session, owner=principal.owner, expires_at=expires_at)
        return f"Bearer {sign(token, SESSION_TYPE, self._signing_key)}"


@dataclass(frozen=True)
class SessionText:
    """A session's id and secret, as the cookie has them. The secret is never printed."""

    id: str
    secret: str = field(repr=False)
    digest: str = field(repr=False)

    @property
    def text(self) -> str:
        return f"{self.id}.{self.secret}"


@dataclass(frozen=True)
class StartedSession:
    """A new session, and the only copy of its secret."""

    text: SessionText
    row: SessionRow


class Sessions:
    """Starts, recognizes and ends sessions. Only `recognize` and `is_use_due` never block."""

    def __init__(self, settings: Settings, database: Database, clock: Clock) -> None:
        admin = settings.admin_key
        self._admin_digest = sha256(admin.get_secret_value()) if admin else None
        self._database = database
        self._clock = clock
        self._known: KeyCache[SessionRow] = KeyCache(clock)

    def start(self, caller: Caller, scopes: Iterable[Scope], agent: str) -> StartedSession:
        """Start a session of this caller. Raises Forbidden for scopes that the caller lacks."""
        principal, wanted = caller.principal, frozenset(scopes)
        _check_scopes(wanted, principal)
        prefix = _OF_OPERATOR if principal == OPERATOR else "ses-"
        minted = self._text(prefix + secrets.token_hex(6), secrets.token_urlsafe(_SECRET_BYTES))
        now = self._clock()
        with self._database.write() as connection:
            row = SessionRow(
                id=minted.id,
                owner=principal.owner,
                name=principal.name,
                scopes=wanted,
                secret_sha256=minted.digest,
                parent=caller.key,
                agent=agent[:_LONGEST_AGENT],
                created_at=now,
                expires_at=self._expiry(connection, caller, now),
            )
            self._make_room(connection, row, now)
            sessions.create(connection, row)
        self._known.keep(row)
        return StartedSession(minted, row)

    def recognize(self, shown: str) -> SessionRow | None:
        """The session of a cookie's value, if it was read recently; None if `look_up` is needed."""
        text = self._parse(shown)
        return self._known.find(text.id, text.digest) if text else None

    def was_valid(self, shown: str) -> bool:
        """Whether a cookie's value has ever been valid here, as far as it is cached."""
        text = self._parse(shown)
        return text is not None and self._known.was_valid(text.id, text.digest)

    def look_up(self, shown: str) -> SessionRow:
        """Read the session of a cookie's value. Raises Unauthorized, DatabaseUnavailable."""
        text = self._parse(shown)
        if text is None:
            raise Unauthorized(_NOT_VALID)
        with self._database.read() as connection:
            row = sessions.find(connection, text.id)
        digest = row.secret_sha256 if row else _NO_DIGEST
        is_same = hmac.compare_digest(digest, text.digest)
        if row is None or not is_same or not row.is_valid(self._clock()):
            self._known.forget(text.id)
            raise Unauthorized(_NOT_VALID)
        self._known.keep(row)
        return row

    def current(self, session: SessionRow) -> list[SessionRow]:
        """Valid sessions that this one may end, the newest first of each owner: with `admin`, all of its owner."""
        condition = _may_end(session)
        with self._database.read() as connection:
            return sessions.current(connection, condition, self._clock(), _MOST_LISTED)

    def end(self, session: SessionRow, name: str) -> None:
        """End a session on behalf of `session`, which may be the same. Raises NotFound."""
        now = self._clock()
        with self._database.write() as connection:
            named = and_(_may_end(session), sessions.of_id(name))
            if not sessions.current(connection, named, now, 1):
                raise NotFound(f"there is no session {name!r}")
            sessions.set_revoked(connection, name, now)
        self._known.forget(name)

    def forget_all(self) -> None:
        """Read each session again: a key was revoked."""
        self._known.clear()

    def is_use_due(self, session: SessionRow) -> bool:
        """Whether `write_use` is due; true at most once a minute."""
        return self._known.is_use_due(session.id)

    def write_use(self, session: SessionRow) -> None:
        """Record that the session was used."""
        write_use(self._database, sessions.set_used, session.id, self._clock())

    def _text(self, name: str, secret: str) -> SessionText:
        if name.startswith(_OF_OPERATOR):
            return SessionText(name, secret, sha256(f"{secret}{self._admin_digest}"))
        return SessionText(name, secret, sha256(secret))

    def _parse(self, shown: str) -> SessionText | None:
        found = _TEXT.fullmatch(shown)
        if found is None or (found[1].startswith(_OF_OPERATOR) and self._admin_digest is None):
            return None
        return self._text(found[1], found[2])

    def _expiry(self, connection: Connection, caller: Caller, now: datetime) -> datetime:
        parent = keys.find(connection, caller.key) if caller.key else None
        latest = now + _LONGEST
        return min(latest, parent.expires_at) if parent and parent.expires_at else latest

    def _make_room(self, connection: Connection, new: SessionRow, now: datetime) -> None:
        same = sessions.of_holder(new.owner, new.name, new.parent)
        for excess in sessions.current(connection, same, now, _MOST_LISTED)[MOST_OF_HOLDER - 1 :]:
            sessions.set_revoked(connection, excess.id, now)
            self._known.forget(excess.id)


def principal_of(session: SessionRow) -> Principal:
    return Principal(session.name, session.owner, session.scopes)


def _may_end(session: SessionRow) -> Condition:
    if Scope.ADMIN in session.scopes:
        return sessions.of_owner(session.owner)
    return sessions.of_holder(session.owner, session.name, session.parent)


def _check_scopes(wanted: frozenset[Scope], principal: Principal) -> None:
    has = ", ".join(sorted(principal.scopes)) or "none"
    if not wanted:
        message = f"a session needs a scope; your key has: {has}"
        raise Forbidden(message, FieldProblem("scopes", message))
    lacking = sorted(wanted - principal.scopes)
    if lacking:
        message = f"your key does not have {', '.join(lacking)}; it has: {has}"
        raise Forbidden(message, FieldProblem("scopes", message))
