"""What Prometheus can scrape. One registry per app: two apps in one process do not mix."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_POST_TO_LIVE_BUCKETS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
_REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Every metric of the control plane."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs_finished = Counter(
            "cmcl_service_jobs_finished",
            "Jobs that came to an end",
            ["state", "reason"],
            registry=self.registry,
        )
        self.attempts = Counter(
            "cmcl_service_attempts",
            "Attempts that were handed to the launcher",
            registry=self.registry,
        )
        self.post_to_live = Histogram(
            "cmcl_service_post_to_live_seconds",
            "From a dataset's POST to the promotion of its version",
            buckets=_POST_TO_LIVE_BUCKETS,
            registry=self.registry,
        )
        self.ticks = Counter(
            "cmcl_service_reconcile_ticks",
            "Rounds of the reconciler",
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            "cmcl_service_reconcile_errors",
            "Steps of the reconciler that failed, by kind of error",
            ["error"],
            registry=self.registry,
        )
        self.requests = Histogram(
            "cmcl_service_http_request_seconds",
            "HTTP requests; the count is their number",
            ["method", "route", "status"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )

    def watch_jobs(self, count: Callable[[], Mapping[str, int]]) -> None:
        """Show the jobs of each state, counted anew at each scrape."""
        self.registry.register(_JobsByState(count))


class _JobsByState(Collector):
    """A gauge that is read from the database: it is right after a restart, too."""

    def __init__(self, count: Callable[[], Mapping[str, int]]) -> None:
        self._count = count

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for state, number in self._count().items():
            family.add_metric([state], number)
        yield family

    def describe(self) -> Iterable[Metric]:
        """Names only: registering must not need a database that answers."""
        yield self._family()

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily("cmcl_service_jobs", "Jobs by state", labels=["state"])
