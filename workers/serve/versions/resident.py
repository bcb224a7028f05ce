"""Versions in memory, within a budget of bytes.

For each model: the live version, the one on trial, and those that answered last, so that rolling back
reads nothing. Beside them, those that requests name exactly (`name@7`). What does not fit is loaded on
demand. Room is made as max-min fair sharing does it: the owner that holds most gives up what it used
least recently, live versions last, so no owner at or below an equal share loses anything to another.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count

from cmcl.contract.errors import WorkerError
from cmcl.contract.version import VersionManifest
from workers.serve.errors import Overloaded
from workers.serve.metrics import ServeMetrics
from workers.serve.versions.loading import LoadedHeads, ServedVersion, StoredVersions, described
from workers.serve.versions.tensors import Reservation, SharedTensor
from workers.storage import layout

logger = logging.getLogger(__name__)

# Beside the one that answers, of each model.
KEPT_FOR_ROLLING_BACK = 4
_FAILURE_SECONDS = 1.0
_MOST_FAILURES = 1024
_LOADING_THREADS = 2
# For requests that use an evicted version to end: a product takes milliseconds.
_LEAVING_SECONDS = 2.0
_POLL_SECONDS = 0.005

_Key = tuple[str, int]


class NoRoom(WorkerError):
    """The heads do not fit beside what has to stay in memory. Says sizes and the setting."""

    retry_can_help = True


class TooLarge(WorkerError):
    """The heads are larger than the whole budget. Says sizes and the setting."""


@dataclass(frozen=True)
class Budget:
    """Bytes for the heads of all versions together; the models of one owner share its part."""

    bytes: int
    owner_of: Callable[[str], str | None] = lambda _: None


@dataclass(frozen=True)
class _Failure:
    """Words only: an exception would hold on to the bytes of what could not be read."""

    kind: type[WorkerError]
    words: str
    until: float


@dataclass(eq=False)
class _Entry:
    """A version with its heads. `used`: grows from use to use, over all versions."""

    version: ServedVersion
    loaded: LoadedHeads
    used: int

    def pinned(self) -> ServedVersion:
        """The version with its heads, also after it was evicted."""
        return replace(self.version, source=self.loaded)


class ResidentVersions:
    """Used by the follower's threads and by the event loop; the lock is held for moments only."""

    def __init__(
        self,
        stored: StoredVersions,
        recent: int,
        budget: Budget,
        metrics: ServeMetrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """`recent`: how many of those that requests named are kept, and how many may be loading for
        the models of one owner. `threads`: that load what requests need.
        """
        self._stored = stored
        self._recent = recent
        self._metrics = metrics
        self._clock = clock
        self._budget_bytes = budget.bytes
        self._owner_of = budget.owner_of
        self._entries: dict[_Key, _Entry] = {}
        self._answered: dict[str, OrderedDict[int, None]] = {}
        # The live version and the one on trial, by model.
        self._live: dict[str, frozenset[int]] = {}
        self._loading: dict[_Key, Future[_Entry]] = {}
        self._loading_for_requests: dict[Future[_Entry], str | None] = {}
        self._reservations: set[Reservation] = set()
        self._failed: OrderedDict[_Key, _Failure] = OrderedDict()
        self._uses = count()
        self._lock = threading.Lock()
        # Their own: requests for many versions must not delay a swap.
        self._threads = threads or ThreadPoolExecutor(_LOADING_THREADS, "version-on-demand")

    @property
    def bytes(self) -> int:
        """Of the heads in memory, those that are being read among them. Never above the budget."""
        with self._lock:
            return self._stored.pool.bytes + self._reserved()

    def get(self, model: str, number: int) -> ServedVersion | None:
        """The version, if it is in memory."""
        entry = self._entries.get((model, number))
        return None if entry is None else entry.version

    def of(self, model: str) -> list[ServedVersion]:
        """All versions of this model that are in memory."""
        with self._lock:
            return [each.version for (name, _), each in self._entries.items() if name == model]

    def at_hand(self, model: str, number: int, created_at: datetime) -> LoadedHeads | None:
        """The heads of a version, if they are in memory; counts as a use. Takes no lock."""
        entry = self._entries.get((model, number))
        if entry is None or entry.version.created_at != created_at:
            return None
        entry.used = next(self._uses)
        return entry.loaded

    async def find(self, model: str, number: int) -> ServedVersion:
        """The version for a request, pinned; requests for it at the same time share one load.

        Raises what loading raises, Overloaded where as many as may be are loading, and RuntimeError
        where no thread can be started. Where trying again cannot help, that is remembered for a second:
        a client that asks for what is not there must not keep the store busy.
        """
        key = (model, number)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                return entry.pinned()
            self._raise_if_failed(key)
            future = self._loading.get(key) or self._begin_on_demand(key)
        # Shielded: a client that hangs up must not take the others' load with it.
        return (await asyncio.shield(asyncio.wrap_future(future))).pinned()

    def load(self, model: str, number: int, *, evict: bool = True) -> ServedVersion:
        """The version, in the caller's thread. Raises what loading raises.

        `evict`: make room for it; otherwise NoRoom is raised where there is none. The live version of
        the same model stays: while they are swapped, both are in memory.
        """
        return self._load((model, number), evict=evict, beside_live=True).version

    def load_heads(self, model: str, number: int) -> LoadedHeads:
        """The heads of a version, in the caller's thread, which is no event loop. Raises as `load`."""
        entry = self._load((model, number), evict=True, beside_live=False)
        entry.used = next(self._uses)
        return entry.loaded

    def unloaded(self, model: str, number: int, *, verify: bool) -> ServedVersion:
        """The version without its heads, which are loaded when they are needed.

        `verify`: read them once to check their digest, in the memory of one chunk. Raises TooLarge, and
        what loading raises.
        """
        manifest = self._stored.manifest(model, number)
        self._check_size(manifest)
        if verify:
            self._stored.verify(manifest)
        return described(manifest, _OnDemand(self, model, number, manifest.created_at))

    def hold(self, live: ServedVersion, candidate: ServedVersion | None) -> None:
        """These two answer; keep them, and some of those that answered before."""
        with self._lock:
            answered = self._answered.setdefault(live.model, OrderedDict())
            answered[live.number] = None
            answered.move_to_end(live.number)
            while len(answered) > 1 + KEPT_FOR_ROLLING_BACK:
                number, _ = answered.popitem(last=False)
                self._entries.pop((live.model, number), None)
            before = self._live.get(live.model, frozenset())
            numbers = {live.number} | ({candidate.number} if candidate is not None else set())
            self._live[live.model] = frozenset(numbers)
            for number in before - numbers - answered.keys():
                self._entries.pop((live.model, number), None)
            self._report()

    def retire(self, model: str, numbers: Collection[int]) -> None:
        """Drop these versions; a load that is under way is not kept."""
        with self._lock:
            answered = self._answered.get(model, OrderedDict())
            for number in numbers:
                answered.pop(number, None)
                self._entries.pop((model, number), None)
                self._loading.pop((model, number), None)
            self._report()

    def forget(self, model: str) -> None:
        """Drop every version of a model that is gone."""
        with self._lock:
            self._answered.pop(model, None)
            self._live.pop(model, None)
            for kept in (self._entries, self._loading, self._failed):
                for key in [key for key in kept if key[0] == model]:
                    del kept[key]
            self._report()

    def _load(self, key: _Key, *, evict: bool, beside_live: bool) -> _Entry:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                return entry
            future = self._loading.setdefault(key, Future())
            mine = _claimed(future)
        if mine:
            self._fill(future, key, evict=evict, beside_live=beside_live)
        return future.result()

    def _begin_on_demand(self, key: _Key) -> Future[_Entry]:
        owner = self._owner_of(key[0])
        under_way = Counter(self._loading_for_requests.values())[owner]
        if under_way >= self._recent:
            model, number = key
            raise Overloaded(
                f"{model}@{number} is not in memory, and {under_way} versions are being loaded for "
                f"requests; permitted are {self._recent} at a time; try again",
                "model",
                "too_many_loads",
            )
        future = self._loading[key] = Future()
        self._loading_for_requests[future] = owner
        try:
            self._threads.submit(self._load_on_demand, future, key)
        except RuntimeError:
            # Otherwise this version would count as loading for ever.
            del self._loading[key]
            del self._loading_for_requests[future]
            future.cancel()
            raise
        return future

    def _load_on_demand(self, future: Future[_Entry], key: _Key) -> None:
        with self._lock:
            mine = _claimed(future)
        if mine:
            self._fill(future, key, evict=True, beside_live=False)

    def _fill(self, future: Future[_Entry], key: _Key, *, evict: bool, beside_live: bool) -> None:
        try:
            entry = self._read(key, evict=evict, beside_live=beside_live)
        except Exception as error:  # noqa: BLE001 - whatever it is, all who wait get to see it
            with self._lock:
                self._loading_for_requests.pop(future, None)
                if self._ended(future, key):
                    self._remember(key, error)
            future.set_exception(error)
        else:
            with self._lock:
                is_on_demand = future in self._loading_for_requests
                self._loading_for_requests.pop(future, None)
                if self._ended(future, key):
                    self._entries[key] = entry
                    if is_on_demand:
                        self._drop_named(besides=key)
                    self._report()
            future.set_result(entry)

    def _read(self, key: _Key, *, evict: bool, beside_live: bool) -> _Entry:
        began, manifest = time.monotonic(), self._stored.manifest(*key)
        loaded = self._stored.at_hand(manifest)
        if loaded is None:
            with self._room_for(manifest, evict=evict, beside_live=beside_live) as reservation:
                loaded = self._stored.read(manifest, reservation)
        self._stored.check(manifest, loaded)
        self._metrics.loaded(key[0], time.monotonic() - began)
        version = described(manifest, _OnDemand(self, *key, manifest.created_at))
        return _Entry(version, loaded, next(self._uses))

    def _ended(self, future: Future[_Entry], key: _Key) -> bool:
        """False where it was retired, or its model deleted, while it loaded."""
        if self._loading.get(key) is not future:
            return False
        del self._loading[key]
        return True

    @contextmanager
    def _room_for(
        self, manifest: VersionManifest, *, evict: bool, beside_live: bool
    ) -> Iterator[Reservation]:
        """Set the bytes of the heads aside while they are read. Raises NoRoom, TooLarge."""
        self._check_size(manifest)
        model, need = manifest.model, manifest.files[layout.HEADS].bytes
        reservation = Reservation(self._owner_of(model), need)
        until = time.monotonic() + _LEAVING_SECONDS
        while not self._reserve(manifest, reservation, evict=evict, beside_live=beside_live):
            if time.monotonic() >= until:
                raise self._no_room(manifest)
            # What was evicted is still used by requests.
            time.sleep(_POLL_SECONDS)
        try:
            yield reservation
        finally:
            with self._lock:
                self._reservations.discard(reservation)

    def _reserve(
        self, manifest: VersionManifest, reservation: Reservation, *, evict: bool, beside_live: bool
    ) -> bool:
        """Whether the bytes are set aside; False while what was evicted is in use."""
        model = manifest.model
        with self._lock:
            stays = (
                {(model, number) for number in self._live.get(model, ())} if beside_live else set()
            )
            while _bytes_of(self._entries.values()) + self._reserved() + reservation.left > (
                self._budget_bytes
            ):
                victim = self._victim(reservation, stays) if evict else None
                if victim is None:
                    raise self._no_room(manifest)
                del self._entries[victim]
                self._metrics.evicted(victim[0])
                self._report()
                logger.info("%s@%d leaves memory: the budget for heads is full", *victim)
            if self._stored.pool.bytes + self._reserved() + reservation.left > self._budget_bytes:
                return False
            self._reservations.add(reservation)
            return True

    def _victim(self, reservation: Reservation, stays: set[_Key]) -> _Key | None:
        """The version to drop next. Only owners above an equal share give room to another owner."""
        held: dict[str | None, list[_Key]] = {}
        for key in self._entries:
            held.setdefault(self._owner_of(key[0]), []).append(key)
        usage = {
            owner: _bytes_of(self._entries[key] for key in keys) for owner, keys in held.items()
        }
        for each in (*self._reservations, reservation):
            usage[each.owner] = usage.get(each.owner, 0) + each.left
        share = self._budget_bytes / len(usage)
        for owner in sorted(usage, key=lambda each: usage[each], reverse=True):
            if usage[owner] <= share and owner != reservation.owner:
                continue
            free = [key for key in held.get(owner, ()) if key not in stays]
            if free:
                return min(free, key=self._order)
        return None

    def _order(self, key: _Key) -> tuple[bool, int]:
        """Which of an owner's versions leaves first: no live one before others, then by last use."""
        model, number = key
        return number in self._live.get(model, ()), self._entries[key].used

    def _drop_named(self, besides: _Key) -> None:
        """Of those that only requests named, as many are kept as may be."""
        named = [
            key
            for key in self._entries
            if key[1] not in self._answered.get(key[0], ())
            and key[1] not in self._live.get(key[0], ())
        ]
        for key in sorted(named, key=self._order)[: max(len(named) - self._recent, 0)]:
            if key != besides:
                del self._entries[key]

    def _reserved(self) -> int:
        return sum(each.left for each in self._reservations)

    def _check_size(self, manifest: VersionManifest) -> None:
        need = manifest.files[layout.HEADS].bytes
        if need > self._budget_bytes:
            raise TooLarge(
                f"the heads of {manifest.model}@{manifest.version} have {_mib(need)}; this replica may "
                f"hold {_mib(self._budget_bytes)} (max_heads_bytes)"
            )

    def _no_room(self, manifest: VersionManifest) -> NoRoom:
        return NoRoom(
            f"the heads of {manifest.model}@{manifest.version} have "
            f"{_mib(manifest.files[layout.HEADS].bytes)}; this replica may hold "
            f"{_mib(self._budget_bytes)} (max_heads_bytes), and what must stay leaves too little of it"
        )

    def _remember(self, key: _Key, error: Exception) -> None:
        if isinstance(error, WorkerError) and not error.retry_can_help:
            until = self._clock() + _FAILURE_SECONDS
            self._failed[key] = _Failure(type(error), str(error), until)
            self._failed.move_to_end(key)
            if len(self._failed) > _MOST_FAILURES:
                self._failed.popitem(last=False)

    def _raise_if_failed(self, key: _Key) -> None:
        failure = self._failed.get(key)
        if failure is not None and self._clock() < failure.until:
            raise failure.kind(failure.words)

    def _report(self) -> None:
        self._metrics.resident(len(self._entries))


@dataclass(frozen=True)
class _OnDemand:
    """The heads of one version, while they are resident or by loading them."""

    resident: ResidentVersions
    model: str
    number: int
    created_at: datetime

    @property
    def at_hand(self) -> LoadedHeads | None:
        return self.resident.at_hand(self.model, self.number, self.created_at)

    def load(self) -> LoadedHeads:
        return self.at_hand or self.resident.load_heads(self.model, self.number)


def _bytes_of(entries: Iterable[_Entry]) -> int:
    """Of their tensors; one that several have counts once."""
    tensors: set[SharedTensor] = {tensor for each in entries for tensor in each.loaded.tensors}
    return sum(tensor.bytes for tensor in tensors)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _claimed(future: Future[_Entry]) -> bool:
    """Whether the caller is the one to load it. Called with the lock.

    A swap takes a load that only waits for its turn away from the requests' threads.
    """
    if future.running() or future.done():
        return False
    return future.set_running_or_notify_cancel()
