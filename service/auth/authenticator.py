"""Authenticates requests by key or token, with a cache of recently valid keys."""

import hmac
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Generic, TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy import Connection

from service.auth.keys import OPERATOR, KeyText, parse, sha256
from service.auth.rate_limiter import RateLimiter
from service.core.clock import Clock
from service.core.errors import DatabaseError, Unauthorized
from service.core.principal import LOCAL, Principal
from service.core.settings import Settings
from service.database.engine import Database
from service.database.queries import keys
from service.database.queries.keys import KeyRow
from service.database.queries.sessions import SessionRow

if TYPE_CHECKING:
    # Slow to import, and most installations have no issuer.
    from service.auth.oidc import OidcTokens

# How long a credential revoked by another instance is still accepted here.
TRUST = timedelta(seconds=5)
# Last use is written at most once a minute.
USE_STEP = timedelta(minutes=1)
_MOST_CACHED = 10_000
# Threads that a hanging token issuer may occupy; other requests use other threads.
_THREADS_FOR_ISSUER = 4

logger = logging.getLogger(__name__)

_NEEDED = "a key is required: send it as Authorization: Bearer cmcl_..."

_SCRAPERS_KEY_NEEDED = "metrics require CMCL_METRICS_KEY, sent as Authorization: Bearer ..."

# The same message for every cause, so that it does not reveal whether a key exists.
_NOT_VALID = "the key is not valid: mistyped, expired or revoked"

# Longer credentials are rejected: keys are short, and a token has a few thousand characters.
_LONGEST = 8192

# Compared with if there is no row, so that the response time does not reveal it either.
_NO_DIGEST = sha256("")


Row = TypeVar("Row", KeyRow, SessionRow)


@dataclass
class _Seen(Generic[Row]):
    row: Row
    at: datetime
    used_at: datetime | None


class KeyCache(Generic[Row]):
    """Rows of recently valid credentials. Bounded and thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen[Row]] = {}
        self._lock = threading.Lock()

    def find(self, name: str, digest: str) -> Row | None:
        """The row, if it was read recently and has not expired."""
        seen, now = self._seen.get(name), self._clock()
        if seen is None or now - seen.at > TRUST or not seen.row.is_valid(now):
            return None
        return seen.row if hmac.compare_digest(seen.row.secret_sha256, digest) else None

    def was_valid(self, name: str, digest: str) -> bool:
        """Whether the credential has ever been valid here."""
        seen = self._seen.get(name)
        return seen is not None and hmac.compare_digest(seen.row.secret_sha256, digest)

    def keep(self, row: Row) -> None:
        """Store a row that is valid now."""
        with self._lock:
            before = self._seen.pop(row.id, None)
            used_at = before.used_at if before else row.last_used_at
            self._seen[row.id] = _Seen(row, self._clock(), used_at)
            while len(self._seen) > _MOST_CACHED:
                del self._seen[next(iter(self._seen))]

    def forget(self, name: str) -> None:
        """Remove a row, so that the next request reads the database."""
        with self._lock:
            self._seen.pop(name, None)

    def clear(self) -> None:
        with self._lock:
            self._seen.clear()

    def is_use_due(self, name: str) -> bool:
        """Whether to write its last use now; true at most once a minute."""
        now = self._clock()
        with self._lock:
            seen = self._seen.get(name)
            if seen is None or (seen.used_at is not None and now - seen.used_at < USE_STEP):
                return False
            seen.used_at = now
            return True


def write_use(
    database: Database,
    set_used: Callable[[Connection, str, datetime, datetime], None],
    name: str,
    now: datetime,
) -> None:
    """Record that a credential was used. A database failure does not fail the request."""
    try:
        with database.write() as connection:
            set_used(connection, name, now, now - USE_STEP)
    except DatabaseError as error:
        logger.warning("the last use of %s was not written: %s", name, error)


@dataclass(frozen=True)
class Caller:
    """The sender of a request, and the id of its key, if any."""

    principal: Principal
    key: str | None = None


_LOCAL = Caller(LOCAL)
_OPERATOR = Caller(OPERATOR)


class Authenticator:
    """Authenticates requests. Only `look_up` and `write_use` may block."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        clock: Clock,
        tokens: "OidcTokens | None",
        requests_per_minute: int,
    ) -> None:
        self.is_open = settings.auth == "off"
        admin = settings.admin_key
        self._admin_digest = sha256(admin.get_secret_value()) if admin else None
        scrapers = settings.metrics_key
        self._scrapers_digest = sha256(scrapers.get_secret_value()) if scrapers else None
        self._database = database
        self._clock = clock
        self._tokens = tokens
        self._known: KeyCache[KeyRow] = KeyCache(clock)
        self._issuer_threads = CapacityLimiter(_THREADS_FOR_ISSUER)
        self.rate_limiter = RateLimiter(requests_per_minute)

    async def identify(self, shown: str | None, address: str) -> Caller:
        """The caller who shows these credentials; what may block runs in a thread. Raises as `look_up`."""
        caller = self.recognize(shown)
        if caller is not None or shown is None:
            return caller or _LOCAL
        limiter = self._issuer_threads if self.asks_issuer(shown) else None
        return await to_thread.run_sync(self.look_up, shown, address, limiter=limiter)

    def recognize(self, shown: str | None) -> Caller | None:
        """The caller, without blocking; None if `look_up` is needed. Raises Unauthorized."""
        if self.is_open:
            return _LOCAL
        if shown is None:
            raise Unauthorized(_NEEDED)
        if self._is_admin_key(shown):
            return _OPERATOR
        key = parse(shown)
        found = self._known.find(key.id, key.digest) if key else None
        return _of_key(found) if found else None

    def check_scraper(self, shown: str | None) -> None:
        """Raises Unauthorized if metrics require a key and this is not it."""
        if self._scrapers_digest is None:
            return
        if shown is None or not hmac.compare_digest(self._scrapers_digest, sha256(shown)):
            raise Unauthorized(_SCRAPERS_KEY_NEEDED)

    def asks_issuer(self, shown: str) -> bool:
        """Whether looking it up may wait for the token issuer."""
        return self._tokens is not None and shown.count(".") == 2

    def look_up(self, shown: str, address: str) -> Caller:
        """Look up the key in the database, or verify the token.

        Raises Unauthorized, Forbidden, TooManyRequests, DatabaseUnavailable, IssuerUnavailable.
        """
        key = parse(shown)
        if not self._is_exempt(shown, key):
            self.rate_limiter.check_address(address)
        try:
            return self._look_up_key(key) if key else self._read_token(shown)
        except Unauthorized:
            self.rate_limiter.check_address(address)
            self.rate_limiter.count_failure(address)
            raise

    def _is_exempt(self, shown: str, key: KeyText | None) -> bool:
        """Whether it is exempt from the limit of failures per address.

        Other clients behind the same address must not lock out a key that has worked, nor a token:
        signatures cannot be guessed, and verifying one needs no database and rarely the issuer.
        """
        return self._known.was_valid(key.id, key.digest) if key else self.asks_issuer(shown)

    def count(self, caller: Caller) -> None:
        """Count a request of the caller's owner; the operator is exempt. Raises TooManyRequests."""
        if caller.principal.owner is not None:
            self.rate_limiter.count(caller.principal.owner)

    def is_use_due(self, caller: Caller) -> bool:
        """Whether `write_use` is due; true at most once a minute."""
        return caller.key is not None and self._known.is_use_due(caller.key)

    def write_use(self, caller: Caller) -> None:
        """Record that the key was used."""
        if caller.key is not None:
            write_use(self._database, keys.set_used, caller.key, self._clock())

    def forget(self, key: str) -> None:
        """Remove a revoked key from the cache."""
        self._known.forget(key)

    def warn_without_keys(self) -> None:
        """Log how to create the first key if no request could be authenticated."""
        if self.is_open or self._admin_digest or self._tokens:
            return
        with self._database.read() as connection:
            if keys.has_any(connection):
                return
        logger.warning(
            "there is no key yet, so every request will be refused; create the first one with "
            "`python -m service keys create NAME --scopes admin,read,write,train`, "
            "or set CMCL_ADMIN_KEY"
        )

    def _is_admin_key(self, shown: str) -> bool:
        digest = self._admin_digest
        return digest is not None and hmac.compare_digest(digest, sha256(shown))

    def _look_up_key(self, key: KeyText) -> Caller:
        with self._database.read() as connection:
            digest = keys.digest_of(connection, key.id) or _NO_DIGEST
            is_same = hmac.compare_digest(digest, key.digest)
            row = keys.find(connection, key.id) if is_same else None
        if row is None or not row.is_valid(self._clock()):
            if row is not None:
                self._known.forget(key.id)
            raise Unauthorized(_NOT_VALID)
        self._known.keep(row)
        return _of_key(row)

    def _read_token(self, shown: str) -> Caller:
        if self._tokens is None or len(shown) > _LONGEST:
            raise Unauthorized(_NOT_VALID)
        return Caller(self._tokens.read(shown))


def _of_key(row: KeyRow) -> Caller:
    return Caller(Principal(row.name, row.owner, row.scopes), row.id)
