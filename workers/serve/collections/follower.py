"""The follower of collections: what a replica searches, and the vectors that it makes when it is the builder.

No error ends its thread: a failure is logged once, leaves what is searched in place, and is retried later.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType

import torch

from cmcl.contract.errors import InvalidVersion, WorkerError
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections import registry
from workers.serve.collections.columns import ColumnBuilder, Target, column_of
from workers.serve.collections.registry import Life
from workers.serve.collections.searching import Searched, newest
from workers.serve.collections.table import State
from workers.serve.telemetry import LogOnce
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import Float32Array, ServedVersion

logger = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 15.0
# Live versions are compared more often than the store is read: that costs nothing.
_SWAP_SECONDS = 0.02

# Reads a version of a model from the store, or from memory: model and number.
VersionOf = Callable[[str, int], ServedVersion]


@dataclass(frozen=True)
class CollectionSnapshot:
    """What a replica knows of a collection at one moment. `searched` None: its vectors are being made.

    `progress`: the share of the next version's vectors that is made. `problem`: why it is behind; `is_damaged`: a
    retry cannot help.
    """

    life: Life
    state: State | None = None
    searched: Searched | None = None
    progress: float | None = None
    problem: str | None = None
    is_damaged: bool = False

    @cached_property
    def rows(self) -> int:
        """The number of items."""
        return 0 if self.state is None else self.state.rows()


class Versions:
    """Versions by the names of their columns, and vectors of features."""

    def __init__(self, model: str, live: LiveVersions, version_of: VersionOf) -> None:
        self._model = model
        self._live = live
        self._version_of = version_of
        self._known: dict[str, ServedVersion] = {}

    def live(self) -> ServedVersion | None:
        """Return the live version of the model."""
        found = self._live.get(self._model)
        if found is None:
            return None
        self._known[column_of(found.version)] = found.version
        return found.version

    def of(self, column: str) -> ServedVersion | None:
        """Return the version of a column; None where it is of a model that was deleted since."""
        if column not in self._known:
            version = self._version_of(self._model, int(column.split("_")[1]))
            self._known[column_of(version)] = version
        return self._known.get(column)

    def embed(self, column: str, modality: str, features_BF: Float32Array) -> Float32Array | None:
        """Return unit embeddings (B x E); None for a modality that the version has not learned."""
        version = self.of(column)
        if version is None or modality in version.not_learned:
            return None
        width = version.spec.widths.get(modality)
        if width != features_BF.shape[1]:
            raise InvalidVersion(
                f"features of modality {modality!r} have width {features_BF.shape[1]}, "
                f"{version.label} expects {width or 'no such modality'}"
            )
        made: Float32Array = version.heads.embed(modality, torch.from_numpy(features_BF)).numpy()
        return made


@dataclass
class _Followed:
    snapshot: CollectionSnapshot
    versions: Versions
    building: Iterator[float] | None = None
    target: str | None = None
    failures: int = 0
    retry_at: float = field(default=0.0)


class CollectionsFollower:
    """All collections of the store, as this replica searches them. `name`: of this replica, for the builder's lease."""

    def __init__(
        self,
        store: ObjectStore,
        live: LiveVersions,
        version_of: VersionOf,
        name: str,
        poll_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._live = live
        self._version_of = version_of
        self._name = name
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._followed: dict[str, _Followed] = {}
        self._snapshots: Mapping[str, CollectionSnapshot] = MappingProxyType({})
        self._damaged: dict[str, str] = {}
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
            (live := self._live.get(each.life.model)) is not None
            and (each.searched is None or each.searched.version != live.version)
            for each in self._snapshots.values()
        )

    def versions_of(self, life: Life) -> Versions:
        """Return what embeds features for a collection."""
        followed = self._followed.get(life.name)
        if followed is not None and followed.snapshot.life == life:
            return followed.versions
        return Versions(life.model, self._live, self._version_of)

    def poll(self) -> None:
        """Poll every collection once. Raises StorageUnavailable if they cannot be listed."""
        names = registry.names(self._store)
        for name in self._followed.keys() - set(names):
            self._forget(name)
        for name in names:
            followed = self._followed.get(name)
            if followed is None or self._clock() >= followed.retry_at:
                self._guarded(name, partial(self._follow, name))

    def work(self) -> bool:
        """Do one step for each collection whose vectors are being made. Returns whether there are more."""
        building = [each for each in self._followed.items() if each[1].building is not None]
        for name, followed in building:
            self._guarded(name, partial(self._step, name, followed))
        return any(followed.building is not None for _, followed in building)

    def _follow(self, name: str) -> None:
        life = registry.newest(self._store, name)
        if life is None or life.ended is not None:
            self._forget(name)
            return
        followed = self._followed.get(name)
        if followed is None or followed.snapshot.life != life:
            versions = Versions(life.model, self._live, self._version_of)
            followed = self._followed[name] = _Followed(CollectionSnapshot(life), versions)
        state = followed.snapshot.state
        if state is None or state.dataset.latest_version != state.dataset.version:
            state = registry.table_of(self._store, life).read()
        self._choose(followed, state)
        self._put(name, followed.snapshot)

    def _choose(self, followed: _Followed, state: State) -> None:
        """Search by the live version if its column is complete, or else by the newest that is."""
        live = followed.versions.live()
        searched = None
        if live is not None and not state.head.deleted:
            complete = (followed.versions.of(each) for each in reversed(state.head.complete))
            searched = newest(state, [live]) or next(
                (Searched(state, each) for each in complete if each is not None), None
            )
        followed.snapshot = replace(followed.snapshot, state=state, searched=searched)
        if live is None or column_of(live) in state.head.complete:
            followed.building = followed.target = None
        elif followed.building is None:
            # One that is being made is finished first: where versions come faster, none would be otherwise.
            self._begin(followed, live)

    def _begin(self, followed: _Followed, live: ServedVersion) -> None:
        builder = self._builder(followed)
        if builder.claim():
            learned = frozenset(live.spec.modalities.keys() - live.not_learned)
            target = Target(column_of(live), live.spec.width, learned)
            followed.target = target.column
            followed.building = builder.build(target, followed.versions.embed)

    def _step(self, name: str, followed: _Followed) -> None:
        assert followed.building is not None
        try:
            progress = next(followed.building)
        except StopIteration:
            followed.building = None
            builder = self._builder(followed)
            builder.drop_old()
            builder.tidy()
            followed.snapshot = replace(followed.snapshot, progress=None)
            self._follow(name)
        else:
            followed.snapshot = replace(followed.snapshot, progress=progress)
            self._builder(followed).claim()
            self._put(name, followed.snapshot)

    def _builder(self, followed: _Followed) -> ColumnBuilder:
        return ColumnBuilder(registry.table_of(self._store, followed.snapshot.life), self._name)

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
        problem = str(error).replace(f"{self._store.uri}/", "")
        is_damaged = isinstance(error, InvalidVersion)
        if is_damaged:
            self._damaged[name] = problem
        followed = self._followed.get(name)
        if followed is None:
            return
        followed.building = None
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
