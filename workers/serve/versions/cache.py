"""The cache of versions: which are kept, and one load for all who wait for the same version.

For each model: the live version and those that answered last, so that a rollback reads nothing. Also those that
requests name exactly (`name@7`). What does not fit into the budget of bytes is loaded on demand.

Owners share the budget max-min fairly: the owner that holds most evicts what it used least recently, live versions
last. An owner that holds no more than an equal share loses nothing to another one.
"""

import asyncio
import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count

from cmcl.contract.errors import WorkerError
from cmcl.contract.version import VersionManifest
from cmcl.storage.versions import heads_bytes
from workers.serve.errors import Overloaded
from workers.serve.telemetry import ServeMetrics
from workers.serve.threads import SYSTEM, Threads
from workers.serve.versions.loading import (
    LoadedHeads,
    Reservation,
    ServedVersion,
    StoredVersions,
    described,
)

logger = logging.getLogger(__name__)

# How long to wait for requests that use an evicted version: a product takes milliseconds.
_LEAVING_SECONDS = 2.0
_POLL_SECONDS = 0.005

# Model and number.
Key = tuple[str, int]
# The owner of a model.
OwnerOf = Callable[[str], str | None]


class NoRoom(WorkerError):
    """The heads do not fit beside what has to stay in memory. The message has sizes and the setting."""

    retry_can_help = True


class TooLarge(WorkerError):
    """The heads are larger than the whole budget. The message has sizes and the setting."""


@dataclass(eq=False)
class CachedVersion:
    """A version with its heads. `used`: a counter of uses, over all versions."""

    version: ServedVersion
    loaded: LoadedHeads
    used: int = 0

    def pinned(self) -> ServedVersion:
        """Return the version with its heads, which stay in memory after eviction."""
        return replace(self.version, source=self.loaded)


def _bytes_of(entries: Iterable[CachedVersion]) -> int:
    """Bytes of their tensors; a shared one counts once."""
    files = {file for each in entries for file in each.loaded.files}
    tensors = {tensor for file in files for tensor in file.tensors.values()}
    return sum(tensor.bytes for tensor in tensors)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


# Versions of each model that are kept besides the live one.
KEPT_FOR_ROLLING_BACK = 4
_LOADING_THREADS = 2


class VersionCache:
    """Also counts what is being read and what evicted versions still use.

    Used from the follower's threads and the event loop; the lock is only held briefly.
    """

    def __init__(
        self,
        stored: StoredVersions,
        recent: int,
        budget: int,
        metrics: ServeMetrics,
        *,
        owner_of: OwnerOf = lambda _: None,
        threads: Threads = SYSTEM,
    ) -> None:
        """`recent`: how many versions that requests named are kept, and how many may be loading for the
        models of one owner. `budget`: bytes for the heads of all versions together; the models of one owner share its
        part.
        """
        self._stored = stored
        self._threads = threads
        self._recent = recent
        self._owner_of = owner_of
        self._budget = budget
        self._metrics = metrics
        self._entries: dict[Key, CachedVersion] = {}
        self._reservations: set[Reservation] = set()
        self._uses = count()
        self._answered: dict[str, OrderedDict[int, None]] = {}
        # The live version, by model.
        self._live: dict[str, int] = {}
        # For requests; a swap loads in its own thread, and waits for none of them.
        # By key, and how often a model of this name was deleted: a new one does not join the loads of an old one.
        self._loading: dict[tuple[Key, int], Future[CachedVersion]] = {}
        self._retired: dict[str, frozenset[int]] = {}
        # By model, while versions of it are read: how many are, and how often it was deleted meanwhile.
        self._reading: Counter[str] = Counter()
        self._deletions: Counter[str] = Counter()
        self._lock = threads.lock()
        # Separate threads: requests for many versions must not delay a swap.
        self._on_demand = threads.executor(_LOADING_THREADS, "version-on-demand")

    @property
    def bytes(self) -> int:
        """Bytes of heads in memory or being read. Never above the budget."""
        with self._lock:
            # In this order: what is read meanwhile counts twice, and never not at all.
            return self._reserved() + self._stored.pool.bytes

    def get(self, model: str, number: int) -> ServedVersion | None:
        """Return the version, if it is in memory."""
        entry = self._entries.get((model, number))
        return None if entry is None else entry.version

    def by_model(self) -> Mapping[str, list[ServedVersion]]:
        """Return all versions that are in memory, the least recently used of each model first."""
        found: dict[str, list[ServedVersion]] = defaultdict(list)
        with self._lock:
            for key in self._oldest_first():
                found[key[0]].append(self._entries[key].version)
        return found

    def in_memory(self, model: str, number: int, created_at: datetime) -> LoadedHeads | None:
        """Return the heads of a version, if they are in memory; counts a use. Takes no lock."""
        entry = self._use((model, number))
        return (
            entry.loaded if entry is not None and entry.version.created_at == created_at else None
        )

    async def find(self, model: str, number: int) -> ServedVersion:
        """Return the version for a request, pinned; concurrent requests share one load.

        Raises what loading raises, and Overloaded where too many are loading: a client that asks for a missing
        version again and again has a few loads at a time.
        """
        key = (model, number)
        with self._lock:
            entry = self._use(key)
            if entry is not None:
                return entry.pinned()
            turn = (key, self._deletions[model])
            future = self._loading.get(turn) or self._begin_on_demand(*turn)
        loading = asyncio.wrap_future(future)
        # Without a waiter its error would be logged as one that no one had expected.
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Shielded: a client that disconnects must not cancel the load of the others.
        return (await asyncio.shield(loading)).pinned()

    def load(self, model: str, number: int, *, evict: bool = True) -> ServedVersion:
        """Load the version in the caller's thread. Raises what loading raises.

        `evict`: evict others for it; otherwise raises NoRoom where it does not fit. The live version of the same
        model stays: during a swap both are in memory.
        """
        return self._load((model, number), evict=evict, beside_live=True).version

    def load_heads(self, model: str, number: int) -> LoadedHeads:
        """Load the heads of a version in the caller's thread: blocks. Raises as `load`."""
        return self._load((model, number), evict=True, beside_live=False).loaded

    def unloaded(self, model: str, number: int, *, verify: bool) -> ServedVersion:
        """Return the version without its heads, which are loaded when they are needed.

        `verify`: read them once to check their digest, in the memory of one chunk. Raises TooLarge, and what
        loading raises.
        """
        manifest = self._stored.manifest(model, number)
        self._check_size(manifest)
        if verify:
            self._stored.verify(manifest)
        return described(manifest, _OnDemand(self, model, number, manifest.created_at))

    def hold(self, live: ServedVersion) -> None:
        """Keep the live version, and some of those that answered before."""
        with self._lock:
            answered = self._answered.setdefault(live.model, OrderedDict())
            answered[live.number] = None
            answered.move_to_end(live.number)
            while len(answered) > 1 + KEPT_FOR_ROLLING_BACK:
                number, _ = answered.popitem(last=False)
                self._entries.pop((live.model, number), None)
            assert next(reversed(answered)) == live.number, "the live version is never dropped"
            self._live[live.model] = live.number

    def retire(self, model: str, numbers: Collection[int]) -> None:
        """Remove these versions of a model, all that are retired; the result of a running load is not kept."""
        with self._lock:
            self._retired[model] = frozenset(numbers)
            answered = self._answered.get(model, OrderedDict())
            for number in numbers:
                answered.pop(number, None)
                self._entries.pop((model, number), None)

    def forget(self, model: str) -> None:
        """Remove all versions of a deleted model."""
        with self._lock:
            self._answered.pop(model, None)
            self._live.pop(model, None)
            self._retired.pop(model, None)
            if self._reading[model]:
                self._deletions[model] += 1
            for key in [key for key in self._entries if key[0] == model]:
                del self._entries[key]

    def _is_live(self, key: Key) -> bool:
        return key[1] == self._live.get(key[0])

    def _use(self, key: Key) -> CachedVersion | None:
        """Return an entry and count a use. Takes no lock."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.used = next(self._uses)
        return entry

    def _oldest_first(self) -> list[Key]:
        """All keys in the order in which those of one owner would be evicted."""
        assert self._lock.locked()
        return sorted(self._entries, key=self._order)

    def _begin_on_demand(self, key: Key, deletions: int) -> Future[CachedVersion]:
        assert self._lock.locked()
        assert (key, deletions) not in self._loading, "one load for all who wait"
        owner = self._owner_of(key[0])
        under_way = sum(self._owner_of(model) == owner for (model, _), _ in self._loading)
        if under_way >= self._recent:
            model, number = key
            raise Overloaded(
                f"{model}@{number} is not in memory, and {under_way} versions are being loaded for "
                f"requests; permitted are {self._recent} at a time; try again",
                "model",
                "too_many_loads",
            )
        future = self._on_demand.submit(self._load_on_demand, key, deletions)
        self._loading[key, deletions] = future
        return future

    def _load_on_demand(self, key: Key, deletions: int) -> CachedVersion:
        try:
            entry = self._load(key, evict=True, beside_live=False)
            with self._lock:
                self._drop_named(keep=key)
            return entry
        finally:
            with self._lock:
                assert (key, deletions) in self._loading
                self._loading.pop((key, deletions), None)

    def _load(self, key: Key, *, evict: bool, beside_live: bool) -> CachedVersion:
        """Two loads of one version at a time share its tensors, and the later entry stays."""
        if (present := self._use(key)) is not None:
            return present
        model, number = key
        with self._lock:
            self._reading[model] += 1
            deletions = self._deletions[model]
        try:
            entry = self._read(key, evict=evict, beside_live=beside_live)
            assert (entry.version.model, entry.version.number) == key
            with self._lock:
                entry.used = next(self._uses)
                # Not what was retired, or whose model was deleted, while it loaded.
                is_retired = number in self._retired.get(model, ()) and not self._is_live(key)
                if deletions == self._deletions[model] and not is_retired:
                    self._entries[key] = entry
                assert self._stored.pool.bytes <= self._budget, "heads are over their budget"
            return entry
        finally:
            with self._lock:
                self._reading[model] -= 1
                assert self._reading[model] >= 0
                if not self._reading[model]:
                    del self._reading[model]
                    self._deletions.pop(model, None)

    def _read(self, key: Key, *, evict: bool, beside_live: bool) -> CachedVersion:
        manifest = self._stored.manifest(*key)
        loaded = self._stored.in_memory(manifest)
        if loaded is None:
            with self._room_for(manifest, evict=evict, beside_live=beside_live) as reservation:
                loaded = self._stored.read(manifest, reservation)
        self._stored.check(manifest, loaded)
        assert loaded.serving.keys() == manifest.spec.modalities.keys()
        version = described(manifest, _OnDemand(self, *key, manifest.created_at))
        return CachedVersion(version, loaded)

    def _check_size(self, manifest: VersionManifest) -> None:
        """Raises TooLarge."""
        need = heads_bytes(manifest)
        if need > self._budget:
            raise TooLarge(
                f"the heads of {manifest.model}@{manifest.version} have {_mib(need)}; this replica may "
                f"hold {_mib(self._budget)} (max_heads_bytes)"
            )

    @contextmanager
    def _room_for(
        self, manifest: VersionManifest, *, evict: bool, beside_live: bool
    ) -> Iterator[Reservation]:
        """Reserve the bytes of a version's heads while they are read. Raises NoRoom, TooLarge.

        `evict`: other versions may be evicted. `beside_live`: but not the live version of the same
        model.
        """
        self._check_size(manifest)
        model, need = manifest.model, heads_bytes(manifest)
        reservation = Reservation(self._owner_of(model), need)

        def may_leave(key: Key) -> bool:
            return evict and not (beside_live and key[0] == model and self._is_live(key))

        until = self._threads.seconds() + _LEAVING_SECONDS
        while not self._reserve(manifest, reservation, may_leave):
            if self._threads.seconds() >= until:
                raise self._no_room(manifest)
            # Requests still use what was evicted.
            self._threads.sleep(_POLL_SECONDS)
        try:
            yield reservation
        finally:
            with self._lock:
                self._reservations.discard(reservation)

    def _reserve(
        self, manifest: VersionManifest, reservation: Reservation, may_leave: Callable[[Key], bool]
    ) -> bool:
        """Whether the bytes are reserved; False while what was evicted is in use."""
        most = self._budget - reservation.left
        with self._lock:
            while _bytes_of(self._entries.values()) + self._reserved() > most:
                victim = self._victim(reservation, may_leave)
                if victim is None:
                    raise self._no_room(manifest)
                del self._entries[victim]
                self._metrics.evicted(victim[0])
                logger.info("%s@%d is evicted: the budget for heads is full", *victim)
            if self._reserved() + self._stored.pool.bytes > most:
                return False
            assert reservation not in self._reservations
            self._reservations.add(reservation)
            return True

    def _victim(self, reservation: Reservation, may_leave: Callable[[Key], bool]) -> Key | None:
        """The version to evict next. Only owners above an equal share lose versions to another owner."""
        assert self._lock.locked()
        held: dict[str | None, list[Key]] = {}
        for key in self._entries:
            held.setdefault(self._owner_of(key[0]), []).append(key)
        usage = {
            owner: _bytes_of(self._entries[key] for key in keys) for owner, keys in held.items()
        }
        for each in (*self._reservations, reservation):
            usage[each.owner] = usage.get(each.owner, 0) + each.left
        assert min(usage.values()) >= 0
        share = self._budget / len(usage)
        for owner in sorted(usage, key=lambda each: usage[each], reverse=True):
            if usage[owner] <= share and owner != reservation.owner:
                continue
            free = filter(may_leave, held.get(owner, ()))
            if (victim := min(free, key=self._order, default=None)) is not None:
                return victim
        return None

    def _order(self, key: Key) -> tuple[bool, int]:
        """Order of eviction among an owner's versions: live ones last, then by last use."""
        return self._is_live(key), self._entries[key].used

    def _reserved(self) -> int:
        return sum(each.left for each in self._reservations)

    def _no_room(self, manifest: VersionManifest) -> NoRoom:
        return NoRoom(
            f"the heads of {manifest.model}@{manifest.version} have "
            f"{_mib(heads_bytes(manifest))}; this replica may hold "
            f"{_mib(self._budget)} (max_heads_bytes), and what must stay in memory leaves too little of it"
        )

    def _drop_named(self, keep: Key) -> None:
        """Evict the oldest of the versions that only requests named, beyond `recent`."""
        named = [
            (model, number)
            for model, number in self._oldest_first()
            if number not in self._answered.get(model, ()) and not self._is_live((model, number))
        ]
        for key in named[: max(len(named) - self._recent, 0)]:
            if key != keep:
                del self._entries[key]


@dataclass(frozen=True)
class _OnDemand:
    """The heads of one version, from the cache or by loading them."""

    cache: VersionCache
    model: str
    number: int
    created_at: datetime

    @property
    def in_memory(self) -> LoadedHeads | None:
        return self.cache.in_memory(self.model, self.number, self.created_at)

    def load(self) -> LoadedHeads:
        return self.in_memory or self.cache.load_heads(self.model, self.number)
