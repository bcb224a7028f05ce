"""Keys that were valid a moment ago, so that not every request asks the database."""

import hmac
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.clock import Clock
from service.control.access.keys import KeyText
from service.database.queries.keys import KeyRecord

# A key that another service has revoked is accepted here for so long.
TRUST = timedelta(seconds=5)
# Last use is known to the minute, for one write a minute.
USE_STEP = timedelta(minutes=1)
_MOST = 10_000


@dataclass
class _Seen:
    record: KeyRecord
    at: datetime
    used_at: datetime | None


class KnownKeys:
    """Bounded; safe to use from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def find(self, key: KeyText) -> KeyRecord | None:
        """The key's row, if it was read a moment ago and is not expired."""
        seen, now = self._seen.get(key.id), self._clock()
        if seen is None or now - seen.at > TRUST or not seen.record.is_valid(now):
            return None
        return seen.record if _same(seen, key) else None

    def was_valid(self, key: KeyText) -> bool:
        """Whether it has been valid here before, however long ago."""
        seen = self._seen.get(key.id)
        return seen is not None and _same(seen, key)

    def keep(self, record: KeyRecord) -> None:
        """It is valid now."""
        with self._lock:
            before = self._seen.pop(record.id, None)
            used_at = before.used_at if before else record.last_used_at
            self._seen[record.id] = _Seen(record, self._clock(), used_at)
            while len(self._seen) > _MOST:
                del self._seen[next(iter(self._seen))]

    def forget(self, key: str) -> None:
        """Ask the database before this key is accepted again."""
        with self._lock:
            self._seen.pop(key, None)

    def is_use_due(self, key: str) -> bool:
        """Whether its last use shall be written; true once a minute, and then it counts as done."""
        now = self._clock()
        with self._lock:
            seen = self._seen.get(key)
            if seen is None or (seen.used_at is not None and now - seen.used_at < USE_STEP):
                return False
            seen.used_at = now
            return True


def _same(seen: _Seen, key: KeyText) -> bool:
    return hmac.compare_digest(seen.record.secret_sha256, key.digest)
