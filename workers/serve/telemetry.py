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
    """Counts events, from any thread."""

    def answered(self, model: str, rows: int, seconds: float) -> None:
        """A request got its embeddings, so many seconds after its first byte."""
        ...

    def finished(self, status: int) -> None:
        """A request ended with this status."""
        ...

    def batch(self, requests: int, rows: int) -> None:
        """One product computed so many rows of so many requests."""
        ...

    def stage(self, name: str, seconds: float) -> None:
        """A request spent so long in one stage: read, look_up, encode, embed, write."""
        ...

    def swapped(self, model: str, version: int, seconds: float) -> None:
        """A version became live, so many seconds after its pointer was read."""
        ...

    def refused(self, model: str, kind: str) -> None:
        """A version could not be used, or not yet; the one before keeps answering.

        `kind`: unavailable, missing, damaged, too_large or error.
        """
        ...

    def lag(self, model: str, generations: int) -> None:
        """How many generations the live version is behind the pointer."""
        ...

    def gone(self, model: str) -> None:
        """The model was deleted."""
        ...

    def evicted(self, model: str) -> None:
        """A version's heads were evicted because the budget for heads was full."""
        ...

    def key_list_refused(self) -> None:
        """A list of keys was not valid; the one before stays in force."""
        ...

    def connected(self, announcements: bool) -> None:
        """Whether this replica receives announcements, or only polls."""
        ...


class StageTimer:
    """Times the stages of one request in eight, since observing costs time as well. Starts with the request."""

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


class TracedTimer(StageTimer):
    """Times the stages of a traced request, each of them."""

    def __init__(self, metrics: ServeMetrics, trace: RequestTrace) -> None:
        super().__init__(metrics)
        self._trace = trace
        self._stage_began = time_ns()

    def stage(self, stage: str) -> None:
        """End this stage."""
        super().stage(stage)
        now = time_ns()
        self._trace.stages.append((stage, self._stage_began, now))
        self._stage_began = now


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
