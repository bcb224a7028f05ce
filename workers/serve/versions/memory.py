"""Heads in memory, within a budget of bytes that owners share fairly.

Max-min fair sharing: the owner that holds most evicts what it used least recently, live versions last. An
owner that holds no more than an equal share loses nothing to another one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

from cmcl.contract.errors import WorkerError
from cmcl.contract.version import VersionManifest
from cmcl.storage.versions import heads_bytes
from workers.serve.telemetry import ServeMetrics
from workers.serve.versions.loading import (
    LoadedHeads,
    Reservation,
    ServedVersion,
    SharedTensor,
    TensorPool,
)

logger = logging.getLogger(__name__)

# How long to wait for requests that use an evicted version: a product takes milliseconds.
_LEAVING_SECONDS = 2.0
_POLL_SECONDS = 0.005

# Model and number.
Key = tuple[str, int]


class NoRoom(WorkerError):
    """The heads do not fit beside what has to stay in memory. The message has sizes and the setting."""

    retry_can_help = True


class TooLarge(WorkerError):
    """The heads are larger than the whole budget. The message has sizes and the setting."""


@dataclass(frozen=True)
class Budget:
    """Bytes for the heads of all versions together; the models of one owner share its part."""

    bytes: int
    owner_of: Callable[[str], str | None] = lambda _: None


@dataclass(eq=False)
class Entry:
    """A version with its heads. `used`: a counter of uses, over all versions."""

    version: ServedVersion
    loaded: LoadedHeads
    used: int = 0

    def pinned(self) -> ServedVersion:
        """Return the version with its heads, which stay in memory after eviction."""
        return replace(self.version, source=self.loaded)


class HeadsCache:
    """Heads within a budget. Also counts what is being read and what evicted versions still use.

    Used from several threads.
    """

    def __init__(
        self,
        pool: TensorPool,
        budget: Budget,
        is_live: Callable[[str, int], bool],
        metrics: ServeMetrics,
    ) -> None:
        """`is_live`: whether a version is live. It must take no lock."""
        self._pool = pool
        self._budget = budget
        self._is_live = is_live
        self._metrics = metrics
        self._entries: dict[Key, Entry] = {}
        self._reservations: set[Reservation] = set()
        self._uses = count()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of heads in memory or being read. Never above the budget."""
        with self._lock:
            return self._pool.bytes + self._reserved()

    def peek(self, key: Key) -> Entry | None:
        """Return an entry without counting a use. Takes no lock."""
        return self._entries.get(key)

    def get(self, key: Key) -> Entry | None:
        """Return an entry and count a use. Takes no lock."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.used = next(self._uses)
        return entry

    def oldest_first(self) -> list[Key]:
        """Return all keys in the order in which those of one owner would be evicted."""
        with self._lock:
            return sorted(self._entries, key=self._order)

    def put(self, key: Key, entry: Entry) -> None:
        """Add heads for which bytes were reserved, or which are in memory already."""
        with self._lock:
            entry.used = next(self._uses)
            self._entries[key] = entry

    def drop(self, key: Key) -> None:
        """Remove an entry, if there is one."""
        with self._lock:
            self._entries.pop(key, None)

    def check_size(self, manifest: VersionManifest) -> None:
        """Raises TooLarge."""
        need = heads_bytes(manifest)
        if need > self._budget.bytes:
            raise TooLarge(
                f"the heads of {manifest.model}@{manifest.version} have {_mib(need)}; this replica may "
                f"hold {_mib(self._budget.bytes)} (max_heads_bytes)"
            )

    @contextmanager
    def room_for(
        self, manifest: VersionManifest, *, evict: bool, beside_live: bool
    ) -> Iterator[Reservation]:
        """Reserve the bytes of a version's heads while they are read. Raises NoRoom, TooLarge.

        `evict`: other versions may be evicted. `beside_live`: but not the live version of the same
        model.
        """
        self.check_size(manifest)
        model, need = manifest.model, heads_bytes(manifest)
        reservation = Reservation(self._budget.owner_of(model), need)

        def may_leave(key: Key) -> bool:
            return evict and not (beside_live and key[0] == model and self._is_live(*key))

        until = time.monotonic() + _LEAVING_SECONDS
        while not self._reserve(manifest, reservation, may_leave):
            if time.monotonic() >= until:
                raise self._no_room(manifest)
            # Requests still use what was evicted.
            time.sleep(_POLL_SECONDS)
        try:
            yield reservation
        finally:
            with self._lock:
                self._reservations.discard(reservation)

    def _reserve(
        self, manifest: VersionManifest, reservation: Reservation, may_leave: Callable[[Key], bool]
    ) -> bool:
        """Whether the bytes are reserved; False while what was evicted is in use."""
        most = self._budget.bytes - reservation.left
        with self._lock:
            while _bytes_of(self._entries.values()) + self._reserved() > most:
                victim = self._victim(reservation, may_leave)
                if victim is None:
                    raise self._no_room(manifest)
                del self._entries[victim]
                self._metrics.evicted(victim[0])
                logger.info("%s@%d is evicted: the budget for heads is full", *victim)
            if self._pool.bytes + self._reserved() > most:
                return False
            self._reservations.add(reservation)
            return True

    def _victim(self, reservation: Reservation, may_leave: Callable[[Key], bool]) -> Key | None:
        """The version to evict next. Only owners above an equal share lose versions to another owner."""
        held: dict[str | None, list[Key]] = {}
        for key in self._entries:
            held.setdefault(self._budget.owner_of(key[0]), []).append(key)
        usage = {
            owner: _bytes_of(self._entries[key] for key in keys) for owner, keys in held.items()
        }
        for each in (*self._reservations, reservation):
            usage[each.owner] = usage.get(each.owner, 0) + each.left
        share = self._budget.bytes / len(usage)
        for owner in sorted(usage, key=lambda each: usage[each], reverse=True):
            if usage[owner] <= share and owner != reservation.owner:
                continue
            free = filter(may_leave, held.get(owner, ()))
            if (victim := min(free, key=self._order, default=None)) is not None:
                return victim
        return None

    def _order(self, key: Key) -> tuple[bool, int]:
        """Order of eviction among an owner's versions: live ones last, then by last use."""
        return self._is_live(*key), self._entries[key].used

    def _reserved(self) -> int:
        return sum(each.left for each in self._reservations)

    def _no_room(self, manifest: VersionManifest) -> NoRoom:
        return NoRoom(
            f"the heads of {manifest.model}@{manifest.version} have "
            f"{_mib(heads_bytes(manifest))}; this replica may hold "
            f"{_mib(self._budget.bytes)} (max_heads_bytes), and what must stay in memory leaves too little of it"
        )


def _bytes_of(entries: Iterable[Entry]) -> int:
    """Bytes of their tensors; a shared one counts once."""
    tensors: set[SharedTensor] = {tensor for each in entries for tensor in each.loaded.tensors}
    return sum(tensor.bytes for tensor in tensors)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
