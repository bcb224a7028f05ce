"""The follower of collections: what a replica searches, and the vectors that it makes when it is the builder.

No error ends its thread: a failure is logged once, leaves what is searched in place, and is retried later.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from cmcl.contract.errors import InvalidVersion, WorkerError
from workers.serve.collections.columns import (
    ColumnBuilder,
    Target,
    VersionOf,
    Versions,
    column_of,
)
from workers.serve.collections.registry import Registry
from workers.serve.collections.searching import Searched
from workers.serve.collections.table import State, VersionGone
from workers.serve.telemetry import LogOnce
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import ServedVersion

logger = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 15.0
# Live versions are compared more often than the store is read: that costs nothing.
_SWAP_SECONDS = 0.02
# Between two sweeps of deleted collections, and until what was removed from one leaves the store.
_SWEEP_SECONDS = 3600.0


@dataclass(frozen=True)
class CollectionSnapshot:
    """What a replica knows of a collection at one moment. `searched` None: its vectors are being made.

    `progress`: the share of the next version's vectors that is made. `problem`: why it is behind; `is_damaged`: a
    retry cannot help.
    """

    state: State
    searched: Searched | None = None
    progress: float | None = None
    problem: str | None = None
    is_damaged: bool = False


@dataclass
class _Followed:
    snapshot: CollectionSnapshot
    versions: Versions
    tidied_at: float
    # Steps of making a column, or of compacting; each yields the progress of the column.
    work: Iterator[float | None] | None = None
    failures: int = 0
    retry_at: float = 0.0


class CollectionsFollower:
    """All collections of the store, as this replica searches them. `name`: of this replica, for the builder's lease."""

    def __init__(
        self,
        registry: Registry,
        live: LiveVersions,
        version_of: VersionOf,
        name: str,
        poll_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._live = live
        self._version_of = version_of
        self._name = name
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._followed: dict[str, _Followed] = {}
        self._snapshots: Mapping[str, CollectionSnapshot] = MappingProxyType({})
        self._damaged: dict[str, str] = {}
        self._sweep_at = clock() + _SWEEP_SECONDS
        self._log = LogOnce(logger, "%s is not followed, what is loaded keeps answering: %s")
        self._woken = threading.Event()
        self._loaded = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collections follower", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and join it."""
        self._stopping.set()
        self._woken.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Poll now. From any thread."""
        self._woken.set()

    def wait_loaded(self, seconds: float) -> bool:
        """Block until all collections of the first poll are searched. False after `seconds`."""
        return self._loaded.wait(seconds)

    def snapshots(self) -> Mapping[str, CollectionSnapshot]:
        """Return the state of each, by name, as an immutable mapping."""
        return self._snapshots

    def damaged(self) -> Mapping[str, str]:
        """What is wrong, by name, with collections whose stored parts cannot be read."""
        return MappingProxyType(dict(self._damaged))

    def behind(self) -> int:
        """How many collections are not searched by their live version."""
        return sum(
            (live := self._live.get(each.state.head.spec.model)) is not None
            and (each.searched is None or each.searched.version != live.version)
            for each in self._snapshots.values()
        )

    def versions_of(self, state: State) -> Versions:
        """Return what embeds features for a collection."""
        followed = self._followed.get(state.head.spec.name)
        if followed is not None and followed.snapshot.state.table == state.table:
            return followed.versions
        return Versions(state.head.spec, self._live, self._version_of)

    def poll(self) -> None:
        """Poll every collection once. Raises StorageUnavailable if they cannot be listed."""
        names = self._registry.names()
        for name in self._followed.keys() - set(names):
            self._forget(name)
        for name in names:
            followed = self._followed.get(name)
            if followed is None or self._clock() >= followed.retry_at:
                self._guarded(name, partial(self._follow, name))
        if self._clock() >= self._sweep_at:
            self._sweep_at = self._clock() + _SWEEP_SECONDS
            for name in names:
                self._registry.sweep(name)

    def work(self) -> bool:
        """Do one step for each collection whose vectors are being made. Returns whether there are more."""
        working = [each for each in self._followed.items() if each[1].work is not None]
        for name, followed in working:
            self._guarded(name, partial(self._step, name, followed))
        return any(followed.work is not None for _, followed in working)

    def _follow(self, name: str) -> None:
        followed = self._followed.get(name)
        state = self._registry.newest(name, None if followed is None else followed.snapshot.state)
        if state is None or state.head.ended_at is not None:
            self._forget(name)
            return
        if followed is None or followed.snapshot.state.table != state.table:
            versions = Versions(state.head.spec, self._live, self._version_of)
            snapshot = CollectionSnapshot(state)
            followed = self._followed[name] = _Followed(snapshot, versions, self._clock())
        live = followed.versions.live()
        searched = None if live is None else _searched(state, live, followed.versions)
        self._put(name, replace(followed.snapshot, state=state, searched=searched))
        if live is None:
            followed.work = None
        elif followed.work is None:
            # A column that is being made is finished first: where versions come faster, none would be otherwise.
            followed.work = self._next_work(followed, live)

    def _next_work(self, followed: _Followed, live: ServedVersion) -> Iterator[float | None] | None:
        state = followed.snapshot.state
        builder = ColumnBuilder(state.table, self._name)
        if column_of(live) not in state.head.complete:
            learned = frozenset(live.spec.modalities.keys() - live.not_learned)
            target = Target(column_of(live), followed.versions.width(live), learned)
            return builder.build(target, followed.versions.embed) if builder.claim() else None
        is_due = self._clock() - followed.tidied_at > _SWEEP_SECONDS
        if builder.is_untidy(state) or (state.head.has_removed and is_due):
            followed.tidied_at = self._clock()
            return builder.tidy() if builder.claim() else None
        return None

    def _step(self, name: str, followed: _Followed) -> None:
        try:
            progress = next(followed.work or iter(()))
        except StopIteration:
            followed.work = progress = None
        self._put(name, replace(followed.snapshot, progress=progress))
        if followed.work is None:
            self._follow(name)
        else:
            ColumnBuilder(followed.snapshot.state.table, self._name).claim()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            seen = self._live.all()
            has_polled = self._poll_safely()
            due = self._clock() + self._poll_seconds
            while not self._stopping.is_set() and self._clock() < due:
                if self._woken.is_set() or self._live.all() is not seen:
                    break
                if self.work():
                    continue
                if has_polled:
                    self._loaded.set()
                self._woken.wait(min(_SWAP_SECONDS, max(due - self._clock(), 0)))

    def _poll_safely(self) -> bool:
        try:
            self.poll()
        except WorkerError as error:
            self._log.failed("the store", error)
            return False
        except Exception:
            # A bug: later polls must still run.
            logger.exception("polling the collections failed")
            return False
        self._log.recovered("the store")
        return True

    def _guarded(self, name: str, do: Callable[[], None]) -> None:
        """Do it, and confine a failure to this collection."""
        try:
            do()
        except Exception as error:
            if not isinstance(error, WorkerError):
                logger.exception("collection %s failed", name)
            self._log.failed(f"collection {name}", error)
            self._failed(name, error)
        else:
            self._log.recovered(f"collection {name}")
            self._damaged.pop(name, None)
            if (followed := self._followed.get(name)) is not None:
                followed.failures = 0
                self._put(name, replace(followed.snapshot, problem=None, is_damaged=False))

    def _failed(self, name: str, error: Exception) -> None:
        # Without the store's address, which callers must not see.
        problem = str(error).replace(f"{self._registry.uri}/", "")
        is_damaged = isinstance(error, InvalidVersion)
        if is_damaged:
            self._damaged[name] = problem
        followed = self._followed.get(name)
        if followed is None:
            return
        followed.work = None
        followed.failures += 1
        # The exponent is bounded too: 2.0 ** 1024 overflows, and a week of failures gets there.
        delay = _FIRST_DELAY_SECONDS * 2.0 ** min(followed.failures, 16)
        followed.retry_at = self._clock() + min(delay, _LONGEST_DELAY_SECONDS)
        self._put(name, replace(followed.snapshot, problem=problem, is_damaged=is_damaged))

    def _forget(self, name: str) -> None:
        self._followed.pop(name, None)
        self._damaged.pop(name, None)
        self._log.recovered(f"collection {name}")
        self._put(name, None)

    def _put(self, name: str, snapshot: CollectionSnapshot | None) -> None:
        """Publish the state in one step: a request that reads it once uses one state."""
        if snapshot is not None and name in self._followed:
            self._followed[name].snapshot = snapshot
        if snapshot is not self._snapshots.get(name):
            others = {other: each for other, each in self._snapshots.items() if other != name}
            self._snapshots = MappingProxyType(others | ({name: snapshot} if snapshot else {}))


def _searched(state: State, live: ServedVersion, versions: Versions) -> Searched | None:
    """Search by the live version if its column is complete, or else by the newest that is."""
    if column_of(live) in state.head.complete:
        return Searched(state, live)
    for column in reversed(state.head.complete):
        try:
            return Searched(state, versions.of(column))
        except VersionGone:
            continue
    return None
