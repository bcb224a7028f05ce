"""The follower of live pointers: it polls `live.json` of every model and swaps versions during traffic.

    poll ─┬─ list the models ──── those that are new ─┐
          ├─ each model that is known ────────────────┴─ read live.json ─┬─ in memory: swap
          └─ other tasks (the list of keys)              └─ load, verify, then swap

No error ends it, and nothing slow delays the rest: reading happens in a few threads, loading in two others. A version
that cannot be used is logged, counted, listed with the model, and retried with growing pauses, while the version before
keeps answering.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cmcl.contract.errors import (
    DigestMismatch,
    InvalidVersion,
    ObjectNotFound,
    StorageUnavailable,
    WorkerError,
)
from cmcl.contract.modality import NAME_PATTERN
from cmcl.contract.version import LivePointer
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_live
from workers.serve.telemetry import LogOnce, ServeMetrics
from workers.serve.threads import SYSTEM, Threads
from workers.serve.versions.cache import NoRoom, TooLarge, VersionCache
from workers.serve.versions.live import LiveVersions, Refusal
from workers.serve.versions.loading import ServedVersion

if TYPE_CHECKING:
    from workers.serve.otel import OpenTelemetryTracing

logger = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 15.0
# Failures of one version that are traced: it may fail for weeks.
_TRACED_FAILURES = 5


class Swapper:
    """Used by several threads, also for one model: the later pointer wins in any order."""

    def __init__(
        self,
        live: LiveVersions,
        cache: VersionCache,
        metrics: ServeMetrics,
        threads: Threads = SYSTEM,
        tracing: "OpenTelemetryTracing | None" = None,
    ) -> None:
        self._live = live
        self._cache = cache
        self._metrics = metrics
        self._clock = threads.seconds
        self._tracing = tracing
        self._seen_at: dict[str, float] = {}
        # Models whose pointer changed while this replica was ready. What it loads when it starts, perhaps weeks after the
        # version was made, is no part of the version's trace.
        self._changed: set[str] = set()
        # Live versions and the cache change together.
        self._swapping = threads.lock()

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

    def due(self, model: str) -> LivePointer | None:
        """Return the pointer whose version is to be taken next: the newest, unless it is live or was refused lately."""
        pointer, live = self._live.pointer(model), self._live.get(model)
        if pointer is None or (live is not None and live.order >= pointer.order):
            return None
        refusal = self._live.refusal(model)
        return None if refusal is not None and self._clock() < refusal.retry_at else pointer

    def take_from_memory(self, model: str) -> bool:
        """Take the version that is due if it is in memory, which is quick. Returns whether it was."""
        if (pointer := self.due(model)) is None:
            return False
        if (version := self._cache.get(model, pointer.version)) is None:
            return False
        self._swap(model, pointer, version)
        return True

    def take(self, model: str) -> None:
        """Load the version that is due and take it, or refuse it."""
        if (pointer := self.due(model)) is None:
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

    def _swap(self, model: str, pointer: LivePointer, version: ServedVersion) -> None:
        assert (version.model, version.number) == (model, pointer.version)
        with self._swapping:
            before = self._live.get(model)
            done = self._live.swap(model, pointer, version)
            self._hold(model)
            seconds = self._clock() - self._seen_at.get(model, self._clock())
            assert seconds >= 0
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
            model,
            pointer.version,
            pointer.generation,
            failures,
            delay,
            error,
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


_MODELS = "models/"
_SHORTEST_PAUSE_SECONDS = 0.02
_READING_THREADS = 4
# Two, so that one large version does not delay another model's swap.
_LOADING_THREADS = 2
# A pointer that is missing once may be a glitch; that of a deleted model stays missing. Counted a pause apart,
# since many wake-ups would make three polls within one glitch.
_POLLS_UNTIL_GONE = 3
PollTask = Callable[[ObjectStore], None]


class KeyedExecutor:
    """Runs tasks by key in a few threads: one at a time for each key, and again if submitted while it runs.

    A slow task delays its own key and occupies one thread. One that is submitted again while it runs goes to the
    end of the queue, however often that happens. A task that raises is logged.
    """

    def __init__(self, threads: Threads, count: int, name: str) -> None:
        self._executor = threads.executor(count, name)
        self._waiting: set[str] = set()
        self._running: set[str] = set()
        self._again: dict[str, Callable[[], None]] = {}
        self._lock = threads.lock()
        self._log = LogOnce(logger, "%s cannot be read, what is loaded keeps answering: %s")

    def submit(self, name: str, task: Callable[[], None]) -> None:
        """Run the task soon; if one of this name is running now, after it."""
        with self._lock:
            if name in self._running:
                self._again[name] = task
            elif name not in self._waiting:
                self._enqueue(name, task)

    def _enqueue(self, name: str, task: Callable[[], None]) -> None:
        assert self._lock.locked()
        assert name not in self._waiting, "queued twice"
        self._waiting.add(name)
        self._executor.submit(self._run, name, task)

    def _run(self, name: str, task: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.discard(name)
            assert name not in self._running, f"{name} runs twice"
            self._running.add(name)
        self._attempt(name, task)
        with self._lock:
            assert name in self._running
            assert name not in self._waiting
            self._running.discard(name)
            again = self._again.pop(name, None)
            if again is not None:
                self._enqueue(name, again)

    def _attempt(self, name: str, task: Callable[[], None]) -> None:
        try:
            task()
        except WorkerError as error:
            self._log.failed(name, error)
        except Exception:
            # A bug: the replica must keep following anyway.
            logger.exception("reading %s failed", name)
        else:
            self._log.recovered(name)


class Follower:
    """Keeps `live` equal to what the pointers in `store` say, as far as that can be verified."""

    def __init__(
        self,
        store: ObjectStore,
        live: LiveVersions,
        swapper: Swapper,
        poll_seconds: float,
        tasks: Sequence[PollTask] = (),
        threads: Threads = SYSTEM,
    ) -> None:
        """`tasks`: what else is read at every poll, as the list of keys."""
        self._store = store
        self._live = live
        self._swapper = swapper
        self._poll_seconds = poll_seconds
        self._tasks = tasks
        self._clock = threads.seconds
        self._missed: dict[str, _Missed] = {}
        self._reading = KeyedExecutor(threads, _READING_THREADS, "follower-read")
        self._loading = KeyedExecutor(threads, _LOADING_THREADS, "follower-load")
        self._sleep = threads.sleep
        self._woken = threads.event()
        self._thread = threads.thread("follower", self._run)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wake(self) -> None:
        """Poll now instead of after the pause. Calls within 20 ms are one poll."""
        self._woken.set()

    def _run(self) -> None:
        while True:
            # Before the poll: a wake-up during it may be for something newer.
            self._woken.clear()
            self.poll()
            self._sleep(_SHORTEST_PAUSE_SECONDS)
            self._woken.wait(max(0.0, self._poll_seconds - _SHORTEST_PAUSE_SECONDS))

    def poll(self) -> None:
        """Begin to read everything once."""
        for model in self._live.pointers():
            self._begin_reading(model)
        for task in self._tasks:
            name = getattr(task, "__qualname__", repr(task))
            self._reading.submit(name, partial(task, self._store))
        self._reading.submit("the store", self._list)

    def _begin_reading(self, model: str) -> None:
        self._reading.submit(f"live.json of {model}", partial(self._read, model))

    def _list(self) -> None:
        """List the models. Those with a known pointer are read in any case."""
        try:
            names = self._store.folders(_MODELS)
        except WorkerError as error:
            self._live.readiness.failed(error)
            raise
        models = [name for name in names if re.fullmatch(NAME_PATTERN, name)]
        self._live.listed(models)
        for model in models:
            if self._live.pointer(model) is None:
                self._begin_reading(model)

    def _read(self, model: str) -> None:
        try:
            if not self._follow(model):
                self._note_tried(model)
        except StorageUnavailable:
            raise  # The next poll tries it.
        except Exception:
            self._live.readiness.tried(model)
            raise

    def _follow(self, model: str) -> bool:
        """Do what is quick. Returns whether a load was started in another thread."""
        pointer = read_live(self._store, model)
        if pointer is None:
            self._miss(model)
            return False
        self._missed.pop(model, None)
        self._swapper.see(model, pointer)
        # A rollback does not wait: neither for a load of its own model nor of others.
        while self._swapper.take_from_memory(model):
            pass
        return self._begin_loading(model)

    def _begin_loading(self, model: str) -> bool:
        if self._swapper.due(model) is None:
            return False
        self._loading.submit(model, partial(self._load, model))
        return True

    def _load(self, model: str) -> None:
        """Load one version. If another is due by then, it is loaded after those of other models."""
        self._swapper.take(model)
        if not self._begin_loading(model):
            self._note_tried(model)

    def _note_tried(self, model: str) -> None:
        """Unless only the store is the reason that its version is not live: another replica may have it."""
        refusal = self._live.refusal(model)
        if refusal is None or refusal.kind != "unavailable":
            self._live.readiness.tried(model)

    def _miss(self, model: str) -> None:
        if self._live.pointer(model) is None:
            return
        now = self._clock()
        before = self._missed.get(model)
        if before is not None and now - before.at < self._poll_seconds:
            return
        # A disk that is not mounted has no models either; that is no reason to stop answering. Asked at each poll: the
        # disk may be back when the last one asks.
        if not self._store.folders(""):
            self._missed.pop(model, None)
            return
        missed = _Missed(1 if before is None else before.times + 1, now)
        self._missed[model] = missed
        assert missed.times <= _POLLS_UNTIL_GONE
        if missed.times >= _POLLS_UNTIL_GONE:
            del self._missed[model]
            self._swapper.drop(model)


@dataclass(frozen=True)
class _Missed:
    """How many polls did not find the pointer; `at`: the last that counted."""

    times: int
    at: float
