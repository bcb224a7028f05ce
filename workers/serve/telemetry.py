"""Metrics, traces and logs of a replica: ports, so that it runs without Ray, and OpenTelemetry is imported only if
a collector is configured (`otel.py`).

Without tracing, a request pays for a comparison with None here and there. A traced request notes times while it is
answered, and its spans are made from them when it has ended.
"""

import logging
from collections.abc import Mapping
from itertools import count
from time import perf_counter, time_ns
from typing import Protocol

_OBSERVED = 8
_requests = count()
# Key of the ASGI scope under which a traced request has its RequestTrace.
TRACE = "cmcl.trace"
Attributes = Mapping[str, str | int]


class ServeMetrics(Protocol):
    """Counts events, from any thread. The series are in `ray_adapters.py`, and explained in docs/serving.md."""

    def answered(self, model: str, rows: int, seconds: float) -> None: ...
    def finished(self, status: int) -> None: ...
    def batch(self, requests: int, rows: int) -> None: ...
    def stage(self, name: str, seconds: float) -> None: ...
    def swapped(self, model: str, version: int, seconds: float) -> None: ...
    def refused(self, model: str, kind: str) -> None: ...
    def lag(self, model: str, generations: int) -> None: ...
    def gone(self, model: str) -> None: ...
    def evicted(self, model: str) -> None: ...
    def key_list_refused(self) -> None: ...
    def connected(self, announcements: bool) -> None: ...


class StageTimer:
    """Times the stages of a request: of one request in eight, since observing costs time as well, and of a traced one."""

    def __init__(self, metrics: ServeMetrics, trace: "RequestTrace | None" = None) -> None:
        self._metrics = metrics
        self._trace = trace
        self._begun = self._last = perf_counter()
        self._traced_last = time_ns() if trace is not None else 0
        self._is_observed = next(_requests) % _OBSERVED == 0

    def stage(self, stage: str) -> None:
        """End this stage."""
        if self._is_observed:
            now = perf_counter()
            self._metrics.stage(stage, now - self._last)
            self._last = now
        if self._trace is not None:
            traced_now = time_ns()
            self._trace.stages.append((stage, self._traced_last, traced_now))
            self._traced_last = traced_now

    @property
    def seconds(self) -> float:
        """Seconds since the request began."""
        return perf_counter() - self._begun


class RequestTrace:
    """Times of one traced request, in nanoseconds since the epoch.

    `stages`: name, begin and end, in the order of their ends. `products`: begin, end, and rows of all requests that
    shared it. They are noted in the thread of the products, also after the request was given up.
    """

    def __init__(self) -> None:
        self.began = time_ns()
        self.received: int | None = None
        self.queued: int | None = None
        self.stages: list[tuple[str, int, int]] = []
        self.products: list[tuple[int, int, int]] = []
        self.attributes: dict[str, str | int] = {}

    def queue(self, model: str, version: int, rows: int) -> None:
        """Note that rows wait for a product of this version from now on."""
        self.queued = self.queued or time_ns()
        before = int(self.attributes.get("cmcl.rows", 0))
        self.attributes = {
            "cmcl.model": model,
            "cmcl.version": version,
            "cmcl.rows": before + rows,
        }


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
