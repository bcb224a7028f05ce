"""Prometheus metrics. One registry per app, so that two apps in one process stay separate.

Counters and histograms count what this process did; sum them over the instances. `BacklogCollector` reads the database at
a scrape: its metrics are correct after a restart, and the same in each instance: take the maximum. Every label has a
bounded number of values; `docs/observability.md` lists them.

Every change of a job, by the reconciler or a user, emits an event in the same transaction. `Metrics.observe_event` is the
one place where events are counted, logged and traced, after the commit: nothing that was rolled back is counted.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cmcl.contract import DISTRIBUTION
from cmcl.contract.api.jobs import FINAL_STATES, FailureReason, JobState
from cmcl.contract.errors import ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.storage.object_store import ObjectStore, Writer
from service.core.clock import Clock
from service.core.errors import DatabaseError, DatabaseUnavailable, WriteConflict
from service.database.engine import Database
from service.database.queries import overviews
from service.database.queries.events import SKIPPED
from service.database.queries.overviews import Backlog
from service.database.rows import Event, JobRow
from service.launchers.port import LauncherRejected, LauncherUnavailable
from service.telemetry.logs import current_request
from service.telemetry.spans import Spans, move_span, trace_id

logger = logging.getLogger(__name__)

_LONG = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
_STAGE = (0.1, 0.5, *_LONG)
_KEY_WORK = (0.01, 0.1, 1, 10, 60)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# These steps run once; those of the other states poll.
_TRACED_STEPS = frozenset(
    {JobState.QUEUED, JobState.PREPARED, JobState.SUBMITTING, JobState.GATING, "store"}
)
_REJECTIONS = (
    FailureReason.DRIFT_TOO_LARGE,
    FailureReason.FORGETTING_TOO_LARGE,
    FailureReason.RESULTS_CHANGED,
    FailureReason.GAIN_TOO_SMALL,
    FailureReason.NOT_MEASURED,
    FailureReason.REJECTED_BY_HAND,
)
_DATABASE_OUTCOMES: dict[type[Exception], str] = {
    DatabaseUnavailable: "unavailable",
    WriteConflict: "conflict",
}
_LAUNCHER_OUTCOMES: dict[type[Exception], str] = {
    LauncherUnavailable: "unavailable",
    LauncherRejected: "rejected",
}
_STATES = {f"job.{state}": state for state in JobState}


class Metrics:
    """The metrics that this process counts."""

    def __init__(self, spans: Spans | None = None) -> None:
        # The creation time of each series: unused, and it doubles the output.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.spans: Spans = spans or Spans()
        ProcessCollector(registry=self.registry)
        self._add_jobs()
        self._add_models()
        self._add_reconciler()
        self._add_outside_calls()
        self._add_requests()

    def _add_jobs(self) -> None:
        self.jobs_finished = self._counter("jobs_finished", "Finished jobs", "state", "reason")
        self.attempts_lost = self._counter(
            "attempts_lost", "Attempts that ended without a candidate and without a reason"
        )
        self.post_to_live = self._histogram(
            "post_to_live_seconds", "From a dataset's POST to the promotion of its version", _LONG
        )
        self.stages = self._histogram(
            "stage_seconds", "Time that jobs spent in a state, when they leave it", _STAGE, "stage"
        )
        # A counter that appears with its first event shows no increase to Prometheus.
        for state in FINAL_STATES - {JobState.REJECTED, JobState.FAILED}:
            self.jobs_finished.labels(state, "")
        for reason in FailureReason:
            state = JobState.REJECTED if reason in _REJECTIONS else JobState.FAILED
            self.jobs_finished.labels(state, reason)

    def _add_models(self) -> None:
        self.query_drift = Gauge(
            "cmcl_service_query_drift",
            "How far the newest queries are from what the model has learned; above 1 is drift",
            ["model", "modality"],
            registry=self.registry,
        )

    def _add_reconciler(self) -> None:
        self.round_age = self._gauge(
            "reconcile_round_age_seconds",
            "Time since the reconciler of this process finished a round",
        )
        self.loop_age = Gauge(
            "cmcl_service_loop_age_seconds",
            "Time since a background loop of this process finished a round",
            ["loop"],
            registry=self.registry,
        )
        # Named as client-go names those of its work queues.
        self.queue_oldest = self._gauge(
            "workqueue_oldest_due_seconds",
            "For how long the key that waits longest for a worker has been due, checks of pointers excepted",
        )
        self.queue_work = self._histogram(
            "workqueue_work_duration_seconds",
            "Processing of one key; the count is the number of keys",
            _KEY_WORK,
            "work",
        )
        self.steps = self._histogram(
            "reconcile_step_seconds", "Single steps of the reconciler", _SHORT, "step"
        )
        self.reconcile_errors = self._counter(
            "reconcile_errors", "Steps of the reconciler that failed, by kind of error", "error"
        )

    def _add_outside_calls(self) -> None:
        self.store_calls = self._histogram(
            "store_seconds", "Calls of object storage", _SHORT, "operation", "outcome"
        )
        self.launcher_calls = self._histogram(
            "launcher_seconds", "Calls of the launcher (Ray)", _SHORT, "call", "outcome"
        )
        self.transactions = self._histogram(
            "database_seconds", "Transactions, from request to commit", _SHORT, "kind", "outcome"
        )
        self.webhook_deliveries = self._counter(
            "webhook_deliveries", "Attempts to deliver a webhook, and messages skipped", "outcome"
        )
        for outcome in ("delivered", "retried", "failed", "skipped"):
            self.webhook_deliveries.labels(outcome)
        self.key_snapshots = self._counter(
            "key_snapshots", "Attempts to write the signed key snapshot", "outcome"
        )
        self.records = self._counter(
            "records", "Backup records written to object storage", "outcome"
        )
        for outcome in ("written", "failed"):
            self.key_snapshots.labels(outcome)
            self.records.labels(outcome)

    def _add_requests(self) -> None:
        self.requests = self._histogram(
            "http_request_seconds",
            "HTTP requests, until the response starts; the count is their number",
            _SHORT,
            *("method", "route", "status"),
        )
        self.requests_in_progress = self._gauge(
            "http_requests_in_progress", "HTTP requests in progress"
        )
        build = Info("cmcl_service_build", "Version of the service", registry=self.registry)
        build.info({"version": version(DISTRIBUTION)})

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"cmcl_service_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"cmcl_service_{name}", meaning, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        full = f"cmcl_service_{name}"
        return Histogram(full, meaning, labels, buckets=buckets, registry=self.registry)

    @contextmanager
    def key_processed(self, work: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.queue_work.labels(work).observe(time.perf_counter() - started)

    @contextmanager
    def step(self, name: str, job: JobRow | None = None) -> Iterator[None]:
        """Time and trace one step of the reconciler."""
        span: AbstractContextManager[None] = nullcontext()
        if job is not None and name in _TRACED_STEPS:
            span = self.spans.step(job.traceparent, f"step {name}", {"cmcl.job": job.id})
        started = time.perf_counter()
        try:
            with span:
                yield
        finally:
            self.steps.labels(name).observe(time.perf_counter() - started)

    @contextmanager
    def transaction(self, kind: str) -> Iterator[None]:
        """Time a transaction, `read` or `write`; one that writes is a span as well, if it is part of a trace."""
        span: AbstractContextManager[None] = nullcontext()
        if kind == "write":
            span = self.spans.inside("database write", {})
        # Otherwise something inside the transaction was rejected: no failure of the database.
        with span, timed(self.transactions, kind, _DATABASE_OUTCOMES, "rolled_back"):
            yield

    @contextmanager
    def launcher_call(self, call: str, submission_id: str) -> Iterator[None]:
        """Time a call of the launcher; one about a submission is a span as well, if it is part of a trace."""
        span: AbstractContextManager[None] = nullcontext()
        if submission_id:
            span = self.spans.inside(f"launcher {call}", {"cmcl.attempt": submission_id})
        with span, timed(self.launcher_calls, call, _LAUNCHER_OUTCOMES, "error"):
            yield

    def observe_event(self, event: Event) -> None:
        """Log, count and trace an event after its commit."""
        _log(event)
        state = _STATES.get(event.kind)
        if state is not None:
            self._count_move(event, state)
            note = current_request.get()
            span = move_span(event, state, note.traceparent if note else None)
            if span is not None:
                self.spans.add(span)
        elif event.kind == SKIPPED:
            self.webhook_deliveries.labels("skipped").inc(_number(event))

    def _count_move(self, event: Event, state: JobState) -> None:
        source, reason = _text(event, "from"), _text(event, "reason")
        if source:
            self.stages.labels(source).observe(_number(event, "after_seconds"))
        if state in FINAL_STATES:
            self.jobs_finished.labels(state, reason).inc()
        goes_back = source == JobState.RUNNING and state == JobState.PREPARED
        if goes_back or reason == FailureReason.ATTEMPTS_EXHAUSTED:
            self.attempts_lost.inc()


@contextmanager
def timed(
    histogram: Histogram, call: str, outcomes: Mapping[type[Exception], str], other: str
) -> Iterator[None]:
    """Time a call, labelled with its name and outcome: `ok`, an entry of the table, or `other`."""
    started = time.perf_counter()
    outcome = other
    try:
        yield
        outcome = "ok"
    except Exception as error:
        outcome = outcome_of(error, outcomes, other)
        raise
    finally:
        histogram.labels(call, outcome).observe(time.perf_counter() - started)


def outcome_of(error: Exception, outcomes: Mapping[type[Exception], str], other: str) -> str:
    """The outcome of the first matching error type."""
    found = (name for kind, name in outcomes.items() if isinstance(error, kind))
    return next(found, other)


def _log(event: Event) -> None:
    fields = {
        name: value
        for name in ("model", "dataset", "job", "version")
        if (value := getattr(event, name)) is not None
    }
    fields |= {name: event.data[name] for name in ("attempt", "reason") if event.data.get(name)}
    source = _text(event, "from")
    came = f" (it was {source})" if source else ""
    if event.seen is not None and event.seen.traceparent is not None:
        fields["trace_id"] = trace_id(event.seen.traceparent)
    message = _text(event, "message")
    why = f": {message}" if message else ""
    subject = event.job or event.dataset or event.model
    logger.info("%s: %s%s%s", event.kind, subject, came, why, extra=fields)


def _text(event: Event, name: str) -> str:
    return str(event.data.get(name) or "")


def _number(event: Event, name: str = "number") -> float:
    number = event.data.get(name)
    return float(number) if isinstance(number, int | float) else 0.0


class BacklogCollector(Collector):
    """How much is waiting, and for how long."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        """Names only: registration must not need the database."""
        return self._families(None)

    def collect(self) -> Iterable[Metric]:
        """The families, without samples if the database does not respond."""
        found = self._read()
        up = GaugeMetricFamily(
            "cmcl_service_backlog_up",
            "1 if the backlog could be read from the database, else 0",
            found is not None,
        )
        return [up, *self._families(found)]

    def _read(self) -> Backlog | None:
        try:
            with self._database.read() as connection:
                return overviews.read_backlog(connection)
        except (DatabaseError, ValueError):
            # The database does not respond, or a row cannot be read: keep the other metrics available.
            logger.exception("metrics could not be read from the database")
            return None

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
                "oldest_unwritten_pointer",
                "Age of the oldest promotion that live.json does not show",
                found.unwritten_since if found else None,
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


# --- Calls of the store ---------------------------------------------------------------------------

T = TypeVar("T")

_STORE_OUTCOMES: dict[type[Exception], str] = {
    ObjectNotFound: "not_found",
    ObjectExists: "exists",
    StorageUnavailable: "unavailable",
}
_OTHER = "error"


class InstrumentedStore:
    """See the port, `cmcl.storage.object_store.ObjectStore`."""

    def __init__(self, store: ObjectStore, metrics: Metrics) -> None:
        self.uri = store.uri
        self._store = store
        self._metrics = metrics

    def read(self, key: str) -> bytes:
        with self._call("read", key):
            return self._store.read(key)

    def stream(self, key: str) -> Iterator[bytes]:
        """See the port. Measures the store's time, not the reader's."""
        with self._call("open", key):
            chunks = self._store.stream(key)
        return self._waited("stream", chunks)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with self._call("read_range", key):
            return self._store.read_range(key, start, stop)

    def download(self, key: str, path: Path) -> None:
        with self._call("download", key):
            self._store.download(key, path)

    def size(self, key: str) -> int:
        with self._call("size", key):
            return self._store.size(key)

    def put(self, key: str, data: bytes) -> None:
        with self._call("put", key):
            self._store.put(key, data)

    def create(self, key: str, data: bytes) -> None:
        with self._call("create", key):
            self._store.create(key, data)

    def upload(self, path: Path, key: str) -> None:
        with self._call("upload", key):
            self._store.upload(path, key)

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator[Writer]:
        with ExitStack() as stack:
            yield stack.enter_context(self._store.writer(key, size))
            # Its end makes the object durable; the time before is the sender's.
            with self._call("writer", key):
                stack.pop_all().close()

    def keys(self, prefix: str) -> Iterator[str]:
        """See the port. Measures the store's time, not the reader's."""
        return self._waited("keys", self._store.keys(prefix))

    def folders(self, prefix: str) -> list[str]:
        with self._call("folders", prefix):
            return self._store.folders(prefix)

    def delete(self, key: str) -> None:
        with self._call("delete", key):
            self._store.delete(key)

    @contextmanager
    def _call(self, operation: str, key: str) -> Iterator[None]:
        span = self._metrics.spans.inside(f"store {operation}", {"cmcl.key": key})
        histogram = self._metrics.store_calls
        with span, timed(histogram, operation, _STORE_OUTCOMES, _OTHER):
            yield

    def _waited(self, operation: str, items: Iterator[T]) -> Iterator[T]:
        """The items; the total waiting time is observed after the last one."""
        waited, outcome = 0.0, "ok"
        try:
            while True:
                started = time.perf_counter()
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    waited += time.perf_counter() - started
                yield item
        except Exception as error:
            outcome = outcome_of(error, _STORE_OUTCOMES, _OTHER)
            raise
        finally:
            self._metrics.store_calls.labels(operation, outcome).observe(waited)
