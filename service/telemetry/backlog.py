"""What the database knows, shown at a scrape: right after a restart, and alike in all replicas.

However often it is scraped, the database is asked once in some seconds, and by one thread. When it
does not answer, everything else is still shown.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Generic, TypeVar

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.clock import Clock
from service.database.engine import Database
from service.database.queries import metrics
from service.database.queries.metrics import Backlog
from service.errors import DatabaseError

T = TypeVar("T")

logger = logging.getLogger(__name__)

_TTL_SECONDS = 5.0


class TTLCache(Generic[T]):
    """What was read, for some seconds; None if it could not be read."""

    def __init__(self, read: Callable[[], T], seconds: float, clock: Clock) -> None:
        self._read = read
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at: datetime | None = None
        self._value: T | None = None

    def value(self) -> T | None:
        """Read anew if it is old. That it failed is kept as well: nobody is asked too often."""
        with self._lock:
            if not self._is_fresh():
                self._value = self._tried()
                self._read_at = self._clock()
            return self._value

    def _is_fresh(self) -> bool:
        if self._read_at is None:
            return False
        return 0 <= (self._clock() - self._read_at).total_seconds() < self._seconds

    def _tried(self) -> T | None:
        try:
            return self._read()
        except (DatabaseError, ValueError):
            # A database that does not answer, or a row that cannot be read: the other metrics are
            # needed now more than ever.
            logger.exception("what the database knows cannot be shown as metrics")
            return None


class BacklogCollector(Collector):
    """How much waits, and how long already."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._cache = TTLCache(self._read, _TTL_SECONDS, clock)

    def describe(self) -> Iterable[Metric]:
        """Names only: registering must not need a database that answers."""
        return self._families(None)

    def collect(self) -> Iterable[Metric]:
        """The families, without samples where the database does not answer."""
        found = self._cache.value()
        up = GaugeMetricFamily(
            "cmcl_service_backlog_up",
            "1 if the database told what waits, 0 if it did not",
            found is not None,
        )
        return [up, *self._families(found)]

    def _read(self) -> Backlog:
        with self._database.read() as connection:
            return metrics.read_backlog(connection)

    def _families(self, found: Backlog | None) -> list[Metric]:
        return [
            *self._job_families(found),
            self._age(
                "oldest_unstored_version",
                "Since a version was published whose files are not in place",
                found.unstored_since if found else None,
                found,
            ),
            self._age(
                "oldest_unmirrored_promotion",
                "Since live.json does not show what is decided",
                found.unmirrored_since if found else None,
                found,
            ),
        ]

    def _job_families(self, found: Backlog | None) -> list[Metric]:
        number = GaugeMetricFamily("cmcl_service_jobs", "Jobs by state", labels=["state"])
        age = GaugeMetricFamily(
            "cmcl_service_oldest_job_seconds",
            "How long the job that is longest in a state is there",
            labels=["state"],
        )
        for state, standing in (found.jobs if found else {}).items():
            number.add_metric([state], standing.count)
            age.add_metric([state], self._seconds_since(standing.since))
        return [number, age]

    def _age(
        self, name: str, meaning: str, since: datetime | None, found: Backlog | None
    ) -> Metric:
        family = GaugeMetricFamily(f"cmcl_service_{name}_seconds", f"{meaning}; 0 if there is none")
        if found is not None:
            family.add_metric([], self._seconds_since(since))
        return family

    def _seconds_since(self, moment: datetime | None) -> float:
        if moment is None:
            return 0.0
        # Another replica's clock may be ahead of ours.
        return max(0.0, (self._clock() - moment).total_seconds())
