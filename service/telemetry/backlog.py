"""Metrics that are read from the database at a scrape: correct after a restart, equal in all instances.

How much is waiting, and for how long; and how far preparation and training of each model are, which shows those that
stand still. However often it is scraped, one thread reads the database every few seconds. If the database does not
respond, the other metrics are still shown.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Generic, TypeVar

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.core.clock import Clock
from service.core.errors import DatabaseError
from service.database.engine import Database
from service.database.queries import metrics
from service.database.queries.metrics import Backlog

T = TypeVar("T")

logger = logging.getLogger(__name__)

_TTL_SECONDS = 5.0


class ScrapeCache(Generic[T]):
    """Caches a value for some seconds; None if it could not be read."""

    def __init__(self, read: Callable[[], T], seconds: float, clock: Clock) -> None:
        self._read = read
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at: datetime | None = None
        self._value: T | None = None

    def value(self) -> T | None:
        """The value, read again if it is old. A failure is cached as well."""
        with self._lock:
            if not self._is_fresh():
                self._value = self._try_read()
                self._read_at = self._clock()
            return self._value

    def _is_fresh(self) -> bool:
        if self._read_at is None:
            return False
        return 0 <= (self._clock() - self._read_at).total_seconds() < self._seconds

    def _try_read(self) -> T | None:
        try:
            return self._read()
        except (DatabaseError, ValueError):
            # The database does not respond, or a row cannot be read: keep the other metrics available.
            logger.exception("metrics could not be read from the database")
            return None


class BacklogCollector(Collector):
    """How much is waiting, and for how long."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._cache = ScrapeCache(self._read, _TTL_SECONDS, clock)

    def describe(self) -> Iterable[Metric]:
        """Names only: registration must not need the database."""
        return self._families(None)

    def collect(self) -> Iterable[Metric]:
        """The families, without samples if the database does not respond."""
        found = self._cache.value()
        up = GaugeMetricFamily(
            "cmcl_service_backlog_up",
            "1 if the backlog could be read from the database, else 0",
            found is not None,
        )
        return [up, *self._families(found)]

    def _read(self) -> Backlog:
        with self._database.read() as connection:
            return metrics.read_backlog(connection)

    def _families(self, found: Backlog | None) -> list[Metric]:
        return [
            *self._job_families(found),
            _by_model(
                "preparation_rows",
                "Rows with a verdict of datasets that are being read or encoded",
                found.prepared_rows if found else {},
            ),
            _by_model(
                "training_progress",
                "Rows read plus updates made in the present phase of the running attempt",
                found.training if found else {},
            ),
            self._age(
                "oldest_unstored_version",
                "Age of the oldest published version whose files are not stored",
                found.unstored_since if found else None,
                found,
            ),
            self._age(
                "oldest_unmirrored_promotion",
                "Age of the oldest promotion that live.json does not show",
                found.unmirrored_since if found else None,
                found,
            ),
            self._age(
                "no_driver",
                "Time since datasets wait and no driver runs that prepares them",
                found.driverless_since if found else None,
                found,
            ),
        ]

    def _job_families(self, found: Backlog | None) -> list[Metric]:
        number = GaugeMetricFamily("cmcl_service_jobs", "Jobs by state", labels=["state"])
        age = GaugeMetricFamily(
            "cmcl_service_oldest_job_seconds",
            "Time since the oldest job in a state entered it",
            labels=["state"],
        )
        for state, standing in (found.jobs if found else {}).items():
            number.add_metric([state], standing.count)
            age.add_metric([state], self._seconds_since(standing.since))
        return [number, age]

    def _age(
        self, name: str, meaning: str, since: datetime | None, found: Backlog | None
    ) -> Metric:
        family = GaugeMetricFamily(f"cmcl_service_{name}_seconds", f"{meaning}; 0 if none")
        if found is not None:
            family.add_metric([], self._seconds_since(since))
        return family

    def _seconds_since(self, moment: datetime | None) -> float:
        if moment is None:
            return 0.0
        # Another instance's clock may be ahead of ours.
        return max(0.0, (self._clock() - moment).total_seconds())


def _by_model(name: str, meaning: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"cmcl_service_{name}", meaning, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family
