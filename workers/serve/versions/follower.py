"""The follower of live pointers: it polls `live.json` of every model and swaps versions during traffic.

    poll ─┬─ list the models ──── those that are new ─┐
          ├─ each model that is known ────────────────┴─ read live.json ─┬─ in memory: swap
          └─ other tasks (the list of keys)              └─ load, then swap

No error ends it, and nothing slow delays the rest: reading happens in a few threads, loading in two others.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from cmcl.contract.errors import WorkerError
from cmcl.contract.modality import NAME_PATTERN
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_live
from workers.serve.telemetry import LogOnce
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.swapper import Swapper

logger = logging.getLogger(__name__)

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

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        """Takes ownership of `threads`."""
        self._threads = threads
        # By a token: an executor that cannot start a thread raises and keeps the task, which must not run
        # beside the one that is submitted in its place.
        self._waiting: dict[str, object] = {}
        self._running: set[str] = set()
        self._again: dict[str, Callable[[], None]] = {}
        self._closed = False
        self._changed = threading.Condition()
        self._log = LogOnce(logger, "%s cannot be read, what is loaded keeps answering: %s")

    def submit(self, name: str, task: Callable[[], None]) -> None:
        """Run the task soon; if one of this name is running now, after it.

        Raises RuntimeError where no thread can be started.
        """
        with self._changed:
            if self._closed:
                return
            if name in self._running:
                self._again[name] = task
            elif name not in self._waiting:
                self._enqueue(name, task)

    def wait(self) -> None:
        """Block until nothing runs and nothing is queued."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running and not self._waiting)

    def close(self) -> None:
        """Start no further task. Does not wait: a read of the store may hang for long."""
        with self._changed:
            self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _enqueue(self, name: str, task: Callable[[], None]) -> None:
        turn = self._waiting[name] = object()
        try:
            self._threads.submit(self._run, name, turn, task)
        except RuntimeError:
            # Otherwise this name would count as queued permanently.
            del self._waiting[name]
            raise

    def _run(self, name: str, turn: object, task: Callable[[], None]) -> None:
        with self._changed:
            if self._waiting.get(name) is not turn:
                return
            del self._waiting[name]
            self._running.add(name)
        self._attempt(name, task)
        with self._changed:
            self._running.discard(name)
            self._changed.notify_all()
            again = self._again.pop(name, None)
            if again is not None and not self._closed:
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tasks`: what else is read at every poll, as the list of keys."""
        self._store = store
        self._live = live
        self._swapper = swapper
        self._poll_seconds = poll_seconds
        self._tasks = tasks
        self._clock = clock
        self._missed: dict[str, _Missed] = {}
        self._reading = KeyedExecutor(ThreadPoolExecutor(_READING_THREADS, "follower-read"))
        self._loading = KeyedExecutor(ThreadPoolExecutor(_LOADING_THREADS, "follower-load"))
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and join it. A read that hangs in the store is abandoned."""
        self._stopping.set()
        self._woken.set()
        self._thread.join()
        self._reading.close()
        self._loading.close()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Poll now instead of after the pause. Calls within 20 ms are one poll."""
        self._woken.set()

    def poll(self) -> None:
        """Poll everything once, and wait for all reads and loads that it starts."""
        self._start_poll()
        self._reading.wait()
        self._loading.wait()

    def _run(self) -> None:
        while not self._stopping.is_set():
            # Before the poll: a wake-up during it may be for something newer.
            self._woken.clear()
            try:
                self._start_poll()
            except RuntimeError:
                # No thread could be started; later ones may.
                logger.exception("a poll could not be started")
            self._stopping.wait(_SHORTEST_PAUSE_SECONDS)
            self._woken.wait(max(0.0, self._poll_seconds - _SHORTEST_PAUSE_SECONDS))

    def _start_poll(self) -> None:
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
        loads = False
        try:
            loads = self._follow(model)
        finally:
            if not loads:
                self._live.readiness.tried(model)

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
        loads = False
        try:
            self._swapper.take(model)
            loads = self._begin_loading(model)
        finally:
            if not loads:
                self._live.readiness.tried(model)

    def _miss(self, model: str) -> None:
        if self._live.pointer(model) is None:
            return
        now = self._clock()
        before = self._missed.get(model)
        if before is not None and now - before.at < self._poll_seconds:
            return
        missed = _Missed(1 if before is None else before.times + 1, now)
        self._missed[model] = missed
        # A disk that is not mounted has no models either; that is no reason to stop answering.
        if missed.times >= _POLLS_UNTIL_GONE and self._store.folders(""):
            del self._missed[model]
            self._swapper.drop(model)


@dataclass(frozen=True)
class _Missed:
    """How many polls did not find the pointer; `at`: the last that counted."""

    times: int
    at: float
