"""Swaps the live version of a model to what its pointer says: loaded and verified during traffic, then live.

A version that cannot be used is logged, counted, listed with the model, and retried with growing pauses, while
the version before keeps answering.
"""

import logging
import threading
import time
from collections.abc import Callable

from cmcl.contract.errors import (
    DigestMismatch,
    InvalidVersion,
    ObjectNotFound,
    StorageUnavailable,
    WorkerError,
)
from cmcl.contract.version import LivePointer
from workers.serve.telemetry import ServeMetrics, Tracing
from workers.serve.versions.cache import VersionCache
from workers.serve.versions.live import LiveVersions, Refusal
from workers.serve.versions.loading import ServedVersion
from workers.serve.versions.memory import NoRoom, TooLarge

logger = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 15.0
# Of one version: it may fail for weeks.
_TRACED_FAILURES = 5


class Swapper:
    """Used by several threads, also for one model: the later pointer wins in any order."""

    def __init__(
        self,
        live: LiveVersions,
        cache: VersionCache,
        metrics: ServeMetrics,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        self._live = live
        self._cache = cache
        self._metrics = metrics
        self._clock = clock
        self._tracing = tracing
        self._seen_at: dict[str, float] = {}
        # Models whose pointer changed while this replica was ready. What it loads when it starts, perhaps weeks after the
        # version was made, is no part of the version's trace.
        self._changed: set[str] = set()
        # Live versions and the cache change together.
        self._swapping = threading.Lock()

    def see(self, model: str, pointer: LivePointer) -> None:
        """Take a new pointer. What needs no loading applies at once."""
        with self._swapping:
            if not self._live.update(model, pointer):
                return
            self._seen_at[model] = self._clock()
            if self._live.readiness.ready:
                self._changed.add(model)
            self._hold(model)
            self._cache.retire(model, pointer.retired)
        self._report_lag(model)

    def due(self, model: str) -> int | None:
        """Return the version to take next: that of the pointer, if it is not live and not refused lately."""
        pointer = self._due(model)
        return None if pointer is None else pointer.version

    def take_from_memory(self, model: str) -> bool:
        """Take the version that is due if it is in memory, which is quick. Returns whether it was."""
        if (pointer := self._due(model)) is None:
            return False
        if (version := self._cache.get(model, pointer.version)) is None:
            return False
        self._swap(model, pointer, version)
        return True

    def take(self, model: str) -> None:
        """Load the version that is due and take it, or refuse it."""
        if (pointer := self._due(model)) is None:
            return
        try:
            version = self._loaded(model, pointer.version)
        except WorkerError as error:
            self._refuse(model, pointer, error)
        except Exception as error:
            # A bug, or no memory: keep answering, and retry with a pause.
            logger.exception("%s@%d cannot be loaded", model, pointer.version)
            self._refuse(model, pointer, error)
        else:
            self._swap(model, pointer, version)

    def _loaded(self, model: str, number: int) -> ServedVersion:
        """The version; without its heads where the budget has no room for them now.

        For a model that answers already the least recently used are evicted, and its next version is verified
        before it answers. One that does not answer yet, as after a start, takes what is free.
        """
        answers = self._live.get(model) is not None
        try:
            return self._cache.load(model, number, evict=answers)
        except NoRoom as error:
            logger.info("%s: it is loaded on demand", error)
            return self._cache.unloaded(model, number, verify=answers)

    def drop(self, model: str) -> None:
        """Remove a deleted model."""
        with self._swapping:
            self._live.forget(model)
            self._cache.forget(model)
            self._seen_at.pop(model, None)
            self._changed.discard(model)
        self._metrics.gone(model)
        logger.info("%s was deleted and no longer answers", model)

    def _due(self, model: str) -> LivePointer | None:
        pointer, live = self._live.pointer(model), self._live.get(model)
        if pointer is None or (live is not None and live.order >= pointer.order):
            return None
        refusal = self._live.refusal(model)
        return None if refusal is not None and self._clock() < refusal.retry_at else pointer

    def _swap(self, model: str, pointer: LivePointer, version: ServedVersion) -> None:
        with self._swapping:
            before = self._live.get(model)
            done = self._live.swap(model, pointer, version)
            self._hold(model)
            seconds = self._clock() - self._seen_at.get(model, self._clock())
        if not done:
            logger.info("%s was superseded while it loaded", version.label)
        elif before is None or before.version != version:
            self._metrics.swapped(model, version.number, seconds)
            self._trace(model, pointer)
            logger.info("%s is live (generation %d)", version.label, pointer.generation)
        self._report_lag(model)

    def _hold(self, model: str) -> None:
        live = self._live.get(model)
        if live is not None:
            self._cache.hold(live.version)

    def _refuse(self, model: str, pointer: LivePointer, error: Exception) -> None:
        before = self._live.refusal(model)
        failures = before.failures + 1 if before else 1
        # The exponent is bounded too: 2.0 ** 1024 overflows, and a week of failures gets there.
        delay = min(_FIRST_DELAY_SECONDS * 2.0 ** min(failures, 16), _LONGEST_DELAY_SECONDS)
        kind, retry_at = _kind(error), self._clock() + delay
        refusal = Refusal(pointer.version, pointer.order, kind, str(error), failures, retry_at)
        if not self._live.refuse(model, refusal):
            return
        self._metrics.refused(model, kind)
        if failures <= _TRACED_FAILURES:
            self._trace(model, pointer, kind)
        logger.warning(
            "%s@%d (generation %d) is refused, try %d, again in %.1f s: %s",
            *(model, pointer.version, pointer.generation, failures, delay, error),
        )

    def _trace(self, model: str, pointer: LivePointer, error: str | None = None) -> None:
        if self._tracing is not None and model in self._changed:
            now = self._clock()
            seconds = now - self._seen_at.get(model, now)
            about: dict[str, str | int] = {"cmcl.model": model, "cmcl.version": pointer.version}
            self._tracing.loaded(pointer.traceparent, seconds, about, error)

    def _report_lag(self, model: str) -> None:
        pointer, live = self._live.pointer(model), self._live.get(model)
        if pointer is not None:
            self._metrics.lag(model, pointer.generation - (live.generation if live else 0))


def _kind(error: Exception) -> str:
    match error:
        case StorageUnavailable():
            return "unavailable"
        case ObjectNotFound():
            return "missing"
        case InvalidVersion() | DigestMismatch():
            return "damaged"
        case TooLarge():
            return "too_large"
    return "error"
