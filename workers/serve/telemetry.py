"""Metrics and logs of a replica, which runs without Ray."""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from time import perf_counter
from typing import Literal, NamedTuple

# An observation costs as much as a tenth of a request: every eighth is observed.
_OBSERVED = 8
_requests = count()


class Series(NamedTuple):
    """A metric, `cmcl_serve_<name>` to Prometheus. `bounds`: of the buckets of a histogram."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    description: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 4, 16)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
# docs/serving.md explains them.
SERIES = (
    Series("counter", "requests_total", "Requests by HTTP status.", ("status",)),
    Series("counter", "rows_total", "Rows that were embedded.", ("model",)),
    Series(
        "counter",
        "refused_versions_total",
        "Attempts at loading a version that failed.",
        ("model", "reason"),
    ),
    Series("counter", "refused_key_lists_total", "Lists of keys that were not valid."),
    Series(
        "counter",
        "evicted_versions_total",
        "Versions evicted because the memory budget was full.",
        ("model",),
    ),
    Series(
        "gauge",
        "generations_behind",
        "Generations of the live version behind its pointer.",
        ("model",),
    ),
    Series(
        "gauge",
        "announcements_connected",
        "1 where replicas receive announcements of changes.",
    ),
    Series("gauge", "ready", "1 once the object storage was read."),
    Series("gauge", "rows_waiting", "Rows that wait for a product."),
    Series("gauge", "heads_bytes", "Bytes of heads in memory."),
    Series("gauge", "collections_behind", "Collections not searched by their live version."),
    Series(
        "histogram",
        "swap_seconds",
        "From reading a pointer to its version being live.",
        ("model",),
        _SECONDS,
    ),
    Series("histogram", "request_seconds", "One request in eight, whole.", ("model",), _SECONDS),
    Series("histogram", "stage_seconds", "One request in eight, by stage.", ("stage",), _SECONDS),
    Series("histogram", "batch_rows", "Rows of one product, every eighth.", (), _ROWS),
    Series(
        "histogram", "batch_requests", "Requests that shared one product, every eighth.", (), _ROWS
    ),
)
_Key = tuple[str, tuple[tuple[str, str], ...]]


class ServeMetrics:
    """Counts events, from any thread. What was counted is drained once a second (`app.py`)."""

    def __init__(self) -> None:
        self._sums: defaultdict[_Key, float] = defaultdict(float)
        self._values: dict[_Key, float] = {}
        self._observations: list[tuple[_Key, float]] = []
        self._watched: dict[str, Callable[[], float]] = {}
        self._lock = threading.Lock()
        self._answers, self._batches = count(), count()

    def watch(self, name: str, read: Callable[[], float]) -> None:
        """Read this gauge whenever metrics are drained."""
        self._watched[name] = read

    def drain(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Yield name, labels and value: what was counted and observed since the last call, and every gauge."""
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
            observations, self._observations = self._observations, []
            values = dict(self._values)
        for (name, labels), value in (*sums.items(), *observations, *values.items()):
            yield name, dict(labels), value
        for name, read in self._watched.items():
            yield name, {}, read()

    def answered(self, model: str, rows: int, seconds: float) -> None:
        self._add("rows_total", rows, model=model)
        if next(self._answers) % _OBSERVED == 0:
            self._observe("request_seconds", seconds, model=model)

    def finished(self, status: int) -> None:
        self._add("requests_total", 1, status=str(status))

    def batch(self, requests: int, rows: int) -> None:
        if next(self._batches) % _OBSERVED == 0:
            self._observe("batch_rows", rows)
            self._observe("batch_requests", requests)

    def stage(self, name: str, seconds: float) -> None:
        self._observe("stage_seconds", seconds, stage=name)

    def swapped(self, model: str, version: int, seconds: float) -> None:
        self._observe("swap_seconds", seconds, model=model)

    def refused(self, model: str, kind: str) -> None:
        self._add("refused_versions_total", 1, model=model, reason=kind)

    def lag(self, model: str, generations: int) -> None:
        self._set("generations_behind", generations, model=model)

    def gone(self, model: str) -> None:
        """Drop the gauge of a deleted model."""
        with self._lock:
            self._values.pop(("generations_behind", (("model", model),)), None)

    def evicted(self, model: str) -> None:
        self._add("evicted_versions_total", 1, model=model)

    def key_list_refused(self) -> None:
        self._add("refused_key_lists_total", 1)

    def connected(self, announcements: bool) -> None:
        self._set("announcements_connected", float(announcements))

    def _add(self, name: str, amount: float, **labels: str) -> None:
        assert amount >= 0, f"{name} would fall"
        with self._lock:
            self._sums[name, tuple(labels.items())] += amount

    def _set(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._values[name, tuple(labels.items())] = value

    def _observe(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._observations.append(((name, tuple(labels.items())), value))


class StageTimer:
    """Times the stages of a request: of one request in eight, since observing costs time as well."""

    def __init__(self, metrics: ServeMetrics) -> None:
        self._metrics = metrics
        self._begun = self._last = perf_counter()
        self._is_observed = next(_requests) % _OBSERVED == 0

    def stage(self, stage: str) -> None:
        """End this stage."""
        if self._is_observed:
            now = perf_counter()
            self._metrics.stage(stage, now - self._last)
            self._last = now

    @property
    def seconds(self) -> float:
        """Seconds since the request began."""
        return perf_counter() - self._begun


class LogOnce:
    """Logs a warning when a failure begins or changes, and not at every retry.

    A store that is unavailable for an hour must not fill the disk with one warning a second.

    `message` has two placeholders: what failed, and the error. Used from several threads.
    """

    def __init__(self, logger: logging.Logger, message: str) -> None:
        self._logger = logger
        self._message = message
        self._last: dict[str, str] = {}

    def failed(self, what: str, error: object) -> None:
        """Log the failure unless it is the one that was logged last."""
        if self._last.get(what) != str(error):
            self._last[what] = str(error)
            self._logger.warning(self._message, what, error)

    def recovered(self, what: str) -> None:
        """Forget the failure: the next one is logged again."""
        self._last.pop(what, None)
