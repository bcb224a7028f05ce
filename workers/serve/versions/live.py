"""The live version of each model: one reference per model, replaced in one step."""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from cmcl.contract.errors import WorkerError
from cmcl.contract.version import LivePointer
from workers.serve.versions.loading import ServedVersion

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Readiness:
    """Whether a replica has seen the store: until then an unknown model may just not have been seen.

    Ready when every model of the first listing was tried: loaded, refused, or found without a version. Used
    from several threads.
    """

    def __init__(self) -> None:
        self._untried: set[str] | None = None
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._reason = "this replica has not seen the store yet"

    @property
    def ready(self) -> bool:
        """Whether the first poll of the store is over."""
        return self._ready.is_set()

    @property
    def reason(self) -> str:
        """Why the replica is not ready; of no meaning once it is."""
        return self._reason

    def wait(self, seconds: float) -> bool:
        """Block until the replica is ready. False after `seconds`."""
        return self._ready.wait(seconds)

    def failed(self, error: WorkerError) -> None:
        """Note that the store could not be listed."""
        with self._lock:
            if self._untried is None:
                self._reason = f"this replica has not seen the store yet: {error}"

    def listed(self, models: Collection[str]) -> None:
        """Note the models that the store has; only the first listing counts."""
        with self._lock:
            if self._untried is None:
                self._untried = set(models)
            self._check()

    def tried(self, model: str) -> None:
        """Note that the version its pointer names was taken or refused, or that there is no pointer."""
        with self._lock:
            if self._untried is not None:
                self._untried.discard(model)
                self._check()

    def _check(self) -> None:
        if not self._untried:
            self._ready.set()
        else:
            self._reason = f"models whose live version was not tried yet: {len(self._untried)}"


def wait_until_ready(
    readiness: Readiness, seconds: float, others_answer: Callable[[], bool]
) -> None:
    """Hold a new replica back until it has seen the store: before, it would answer 503.

    For `seconds`, and for as long as other replicas answer in its place, so that neither a restart nor an
    update replaces a replica that answers with one that cannot. Without other replicas it starts anyway:
    requests and `/readyz` are answered with the reason, and the store is polled all the time.
    """
    while not readiness.wait(seconds):
        if not others_answer():
            logger.warning("requests are answered with 503: %s", readiness.reason)
            return
        logger.warning("waiting while other replicas answer: %s", readiness.reason)


@dataclass(frozen=True)
class LiveModel:
    """The live version of one model, and what else its pointer says.

    `generation` and `revision` are those of the pointer that named `version`.
    """

    generation: int
    revision: int
    version: ServedVersion
    owner: str | None = None
    retired: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, int]:
        """As in `LivePointer`: the later one has the larger order."""
        return (self.generation, self.revision)

    def updated(self, pointer: LivePointer) -> "LiveModel":
        """Return it with everything of a pointer that applies at once, whether or not its version can be loaded."""
        return replace(self, owner=pointer.owner, retired=pointer.retired)


@dataclass(frozen=True)
class Refusal:
    """A version of the pointer of `order` that could not be used, and why.

    `kind`: unavailable, missing, damaged, too_large or error. `retry_at`: by the follower's clock.
    """

    version: int
    order: tuple[int, int]
    kind: str
    reason: str
    failures: int
    retry_at: float

    @property
    def generation(self) -> int:
        """Of the pointer."""
        return self.order[0]


class LiveVersions:
    """Written by the follower's threads, read by every request without a lock.

    The mappings are never changed, only replaced: a request that reads once uses one version from its first row
    to its last.
    """

    def __init__(self) -> None:
        self._live: Mapping[str, LiveModel] = MappingProxyType({})
        self._pointers: Mapping[str, LivePointer] = MappingProxyType({})
        self._refusals: Mapping[str, Refusal] = MappingProxyType({})
        self._listed: frozenset[str] = frozenset()
        # Deleted models of which the store still has files: they are not new models.
        self._gone: frozenset[str] = frozenset()
        self.readiness = Readiness()
        self._watchers: set[_Watcher] = set()
        self._writing = threading.Lock()

    def get(self, model: str) -> LiveModel | None:
        """Return the live version of this model; None before its first."""
        return self._live.get(model)

    def all(self) -> Mapping[str, LiveModel]:
        """Return all live versions, as of one moment."""
        return self._live

    def pointer(self, model: str) -> LivePointer | None:
        """Return the latest pointer of this model."""
        return self._pointers.get(model)

    def pointers(self) -> Mapping[str, LivePointer]:
        """Return the latest pointer of every model, as of one moment."""
        return self._pointers

    def has(self, model: str) -> bool:
        """Whether the store has this model, with or without a live version."""
        return model in self._pointers or model in self._listed - self._gone

    def refusal(self, model: str) -> Refusal | None:
        """Return why the version of the latest pointer cannot be used; None if it can, or was not tried yet."""
        return self._refusals.get(model)

    def update(self, model: str, pointer: LivePointer) -> bool:
        """Take a new pointer. False where it is not newer. Owner and retirements apply at once."""
        with self._writing:
            known = self._pointers.get(model)
            if known is not None and pointer.order <= known.order:
                return False
            self._pointers = _with(self._pointers, model, pointer)
            self._gone -= {model}
            self._refusals = _without(self._refusals, model)
            live = self._live.get(model)
            if live is not None:
                self._live = _with(self._live, model, live.updated(pointer))
            self._notify()
            return True

    def swap(self, model: str, pointer: LivePointer, version: ServedVersion) -> bool:
        """Make the version of that pointer live, unless it was superseded or its model is deleted."""
        with self._writing:
            newest, live = self._pointers.get(model), self._live.get(model)
            if newest is None or (live is not None and pointer.order <= live.order):
                return False
            if version.number in newest.retired and version.number != newest.version:
                return False
            swapped = LiveModel(*pointer.order, version).updated(newest)
            self._live = _with(self._live, model, swapped)
            self._refusals = _without(self._refusals, model)
            self._notify()
            return True

    def refuse(self, model: str, refusal: Refusal) -> bool:
        """Note a version that could not be used, unless its pointer was superseded."""
        with self._writing:
            newest = self._pointers.get(model)
            if newest is None or newest.order != refusal.order:
                return False
            self._refusals = _with(self._refusals, model, refusal)
            return True

    def forget(self, model: str) -> None:
        """Remove a deleted model."""
        with self._writing:
            self._live = _without(self._live, model)
            self._pointers = _without(self._pointers, model)
            self._refusals = _without(self._refusals, model)
            self._gone |= {model}
            self._notify()

    def listed(self, models: Collection[str]) -> None:
        """Note the models of a new listing of the store."""
        with self._writing:
            self._listed = frozenset(models)
            self._gone &= self._listed
        self.readiness.listed(models)

    async def wait_for(self, ask: Callable[[], T | None], seconds: float) -> T | None:
        """Call `ask` now and after each change, until it returns something; None after `seconds`."""
        with self._watching() as watcher:
            try:
                async with asyncio.timeout(seconds):
                    while (answer := ask()) is None:
                        await watcher.changed.wait()
                        watcher.changed.clear()
                    return answer
            except TimeoutError:
                # A last time: in a busy loop, the change and the timeout can coincide.
                return ask()

    @contextmanager
    def _watching(self) -> Iterator["_Watcher"]:
        watcher = _Watcher(asyncio.get_running_loop(), asyncio.Event())
        with self._writing:
            self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            with self._writing:
                self._watchers.remove(watcher)

    def _notify(self) -> None:
        # Under the lock: the loop of a watcher in the set is not closed yet.
        for watcher in self._watchers:
            watcher.loop.call_soon_threadsafe(watcher.changed.set)


@dataclass(frozen=True, eq=False)
class _Watcher:
    """A request that waits for a change, in its event loop."""

    loop: asyncio.AbstractEventLoop
    changed: asyncio.Event


def _with(mapping: Mapping[str, T], key: str, value: T) -> Mapping[str, T]:
    return MappingProxyType({**mapping, key: value})


def _without(mapping: Mapping[str, T], key: str) -> Mapping[str, T]:
    return MappingProxyType({name: each for name, each in mapping.items() if name != key})
