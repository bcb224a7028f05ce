"""The follower of collections: what a replica searches, and the vectors that it makes when it is the builder.

One thread polls the store, another makes vectors and indexes, which takes minutes. No error ends them: a failure is
logged once, leaves what is searched in place, and is retried later.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from cmcl.contract.errors import InvalidVersion, WorkerError
from workers.serve.collections.columns import ColumnBuilder, VersionOf, Versions, column_of
from workers.serve.collections.registry import Registry
from workers.serve.collections.searching import Searched
from workers.serve.collections.table import State, VersionGone
from workers.serve.telemetry import LogOnce
from workers.serve.threads import SYSTEM, Threads
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import ServedVersion

logger = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 15.0
# Live versions are compared more often than the store is read: that costs nothing.
_SWAP_SECONDS = 0.02
# Polls of many collections take at most a twentieth of the time, compacting one at most half: what is not indexed yet
# is compared row by row.
_POLL_SHARE, _TIDY_SHARE = 19, 1
# Between two sweeps of deleted collections and of files that no state needs.
_SWEEP_SECONDS = 3600.0


@dataclass(frozen=True)
class CollectionSnapshot:
    """The state of a collection in a replica at one moment. `searched` None: its vectors are being made.

    `progress`: the share of the next version's vectors that is made, `seconds_left` of the rest. `problem`: why it is
    behind; `is_damaged`: a retry cannot help.
    """

    state: State
    searched: Searched | None = None
    progress: float | None = None
    seconds_left: float | None = None
    problem: str | None = None
    is_damaged: bool = False


@dataclass
class _Attempts:
    """At something that can fail: why the last one failed, and when the next one is due."""

    problem: str | None = None
    is_damaged: bool = False
    failures: int = 0
    due: float = 0.0


@dataclass
class _Followed:
    snapshot: CollectionSnapshot
    versions: Versions
    tidy_due: float = 0.0
    # Steps of making a column, or of compacting; each yields the progress of the column.
    work: Iterator[float | None] | None = None
    begun: float = 0.0
    polls: _Attempts = field(default_factory=_Attempts)
    works: _Attempts = field(default_factory=_Attempts)


class CollectionsFollower:
    """All collections of the store, as this replica searches them. `name`: of this replica, for the builder's lease."""

    def __init__(
        self,
        registry: Registry,
        live: LiveVersions,
        version_of: VersionOf,
        name: str,
        poll_seconds: float,
        threads: Threads = SYSTEM,
    ) -> None:
        self._registry = registry
        self._live = live
        self._version_of = version_of
        self._name = name
        self._poll_seconds = poll_seconds
        self._clock = threads.seconds
        self._followed: dict[str, _Followed] = {}
        self._snapshots: Mapping[str, CollectionSnapshot] = MappingProxyType({})
        self._damaged: dict[str, str] = {}
        self._sweep_at = threads.seconds() + _SWEEP_SECONDS
        self._log = LogOnce(logger, "%s is not followed, what is loaded keeps answering: %s")
        # Of what both threads change: `_followed` and `_snapshots`.
        self._lock = threads.lock()
        self._woken = threads.event()
        self._has_work = threads.event()
        self._loaded = threads.event()
        self._threads = [
            threads.thread(f"collections {name}", target)
            for name, target in (("follower", self._run), ("builder", self._run_builder))
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether the threads run."""
        return all(thread.is_alive() for thread in self._threads)

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
            attempts = _Attempts() if followed is None else followed.polls
            if self._clock() >= attempts.due:
                self._guarded(name, attempts, partial(self._follow, name))
        if self._clock() >= self._sweep_at:
            self._sweep_at = self._clock() + _SWEEP_SECONDS
            for name in names:
                try:
                    self._registry.sweep(name)
                except (WorkerError, OSError) as error:
                    logger.warning("files of collection %s are swept in an hour: %s", name, error)

    def work(self) -> bool:
        """Do one step for each collection whose vectors are being made. Returns whether there are more."""
        # Copied in one step, as the other thread adds and removes some.
        working = [each for each in [*self._followed.items()] if each[1].work is not None]
        for name, followed in working:
            self._guarded(name, followed.works, partial(self._step, name, followed))
        return any(followed.work is not None for _, followed in working)

    def _follow(self, name: str) -> None:
        followed = self._followed.get(name)
        state = self._registry.newest(name, None if followed is None else followed.snapshot.state)
        if state is None or state.head.ended_at is not None:
            self._forget(name)
            return
        if followed is None or followed.snapshot.state.table != state.table:
            versions = Versions(state.head.spec, self._live, self._version_of)
            followed = _Followed(CollectionSnapshot(state), versions)
            with self._lock:
                self._followed[name] = followed
        live = followed.versions.live()
        searched = None if live is None else _searched(state, live, followed.versions)
        self._put(name, state=state, searched=searched)
        if followed.work is not None:
            ColumnBuilder(state.table, self._name).claim()
        # A column that is being made is finished first: where versions come faster, none would be otherwise.
        if live is not None and followed.work is None and self._clock() >= followed.works.due:
            followed.work = self._next_work(followed, live)
            if followed.work is not None:
                followed.begun = self._clock()
                self._has_work.set()

    def _next_work(self, followed: _Followed, live: ServedVersion) -> Iterator[float | None] | None:
        assert followed.work is None
        state = followed.snapshot.state
        builder = ColumnBuilder(state.table, self._name)
        if column_of(live) not in state.head.complete:
            return builder.build(live, followed.versions.embed) if builder.claim() else None
        if self._clock() >= followed.tidy_due and builder.is_untidy(state):
            return builder.tidy() if builder.claim() else None
        return None

    def _step(self, name: str, followed: _Followed) -> None:
        assert followed.work is not None
        try:
            share = next(followed.work)
            assert share is None or 0 <= share <= 1
            left = (self._clock() - followed.begun) * (1 / share - 1) if share else None
            self._put(name, progress=share, seconds_left=left)
        except StopIteration:
            now = self._clock()
            followed.tidy_due = now + _TIDY_SHARE * (now - followed.begun)
            followed.work = None
            self._put(name, progress=None, seconds_left=None)
            self.wake()

    def _run(self) -> None:
        while True:
            self._woken.clear()
            seen, begun = self._live.all(), self._clock()
            has_polled = self._poll_safely()
            polled = self._clock()
            due = polled + max(self._poll_seconds, _POLL_SHARE * (polled - begun))
            while self._clock() < due:
                if self._woken.is_set() or self._live.all() is not seen:
                    break
                if has_polled and all(each.work is None for each in self._followed.values()):
                    self._loaded.set()
                self._woken.wait(min(_SWAP_SECONDS, max(due - self._clock(), 0)))

    def _run_builder(self) -> None:
        while True:
            self._has_work.clear()
            if not self.work():
                self._has_work.wait()

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

    def _guarded(self, name: str, attempts: _Attempts, do: Callable[[], None]) -> None:
        """Do it, and confine a failure to this collection."""
        try:
            do()
        except Exception as error:
            if not isinstance(error, WorkerError):
                logger.exception("collection %s failed", name)
            self._log.failed(f"collection {name}", error)
            # Without the store's address, which callers must not see.
            attempts.problem = str(error).replace(f"{self._registry.uri}/", "")
            attempts.is_damaged = isinstance(error, InvalidVersion)
            attempts.failures += 1
            # The exponent is bounded too: 2.0 ** 1024 overflows, and a week of failures gets there.
            delay = _FIRST_DELAY_SECONDS * 2.0 ** min(attempts.failures, 16)
            attempts.due = self._clock() + min(delay, _LONGEST_DELAY_SECONDS)
            if attempts.is_damaged:
                self._damaged[name] = attempts.problem
            if (followed := self._followed.get(name)) is not None:
                if attempts is followed.works:
                    followed.work = None
                self._put(name, progress=None, seconds_left=None)
        else:
            if attempts.problem is not None:
                attempts.problem, attempts.is_damaged, attempts.failures = None, False, 0
                self._log.recovered(f"collection {name}")
                self._put(name)
            self._damaged.pop(name, None)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._followed.pop(name, None)
            kept = {other: each for other, each in self._snapshots.items() if other != name}
            self._snapshots = MappingProxyType(kept)
        self._damaged.pop(name, None)
        self._log.recovered(f"collection {name}")

    def _put(self, name: str, **changes: Any) -> None:
        """Publish changes in one step: a request that reads a snapshot once uses one state."""
        with self._lock:
            followed = self._followed.get(name)
            if followed is not None:
                first = followed.polls if followed.polls.problem is not None else followed.works
                changes |= {"problem": first.problem, "is_damaged": first.is_damaged}
                snapshot = followed.snapshot = replace(followed.snapshot, **changes)
                self._snapshots = MappingProxyType({**self._snapshots, name: snapshot})


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
