"""Move the live pointer as the control plane does.

Replicas are not polled for their version: polling each every four milliseconds added half as much
load during swaps, and distorted the measurement (docs/log.md).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from benchmarks.endpoint.stored import MODEL
from cmcl.contract.version import ANNOUNCEMENTS, LivePointer
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import write_live

_TIMEOUT_SECONDS = 20.0
# Every fifth swap is a rollback to the previous version, which is still in memory.
_ROLLBACK_EVERY = 5


@dataclass(frozen=True)
class Move:
    """One swap. `at`: by time.time(), just before the pointer was written. `announced`: seconds
    after that."""

    version: int
    is_rollback: bool
    at: float
    announced: float


def order(versions: int) -> Iterator[tuple[int, bool]]:
    """Yield (version, is rollback) forever. Versions repeat in a cycle longer than the replicas'
    cache; some steps are rollbacks."""
    step, now = 0, 1
    while True:
        step += 1
        is_rollback = step % _ROLLBACK_EVERY == 0
        now = (now - 1 + (-1 if is_rollback else 1)) % versions + 1
        yield now, is_rollback


class Mover:
    """Writes and announces the pointer. `address`: of the endpoint."""

    def __init__(self, store: ObjectStore, address: str) -> None:
        self._store = store
        self._client = httpx.Client(base_url=address, timeout=_TIMEOUT_SECONDS)
        self._generation = 1

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def move(self, version: int, *, is_rollback: bool = False) -> Move:
        """Write the pointer and announce it."""
        self._generation += 1
        pointer = LivePointer(generation=self._generation, version=version)
        at, begin = time.time(), time.perf_counter()
        write_live(self._store, MODEL, pointer)
        self._announce()
        return Move(version, is_rollback, at, time.perf_counter() - begin)

    def _announce(self) -> None:
        """Announce the move, as the control plane does. Replicas also poll the store."""
        try:
            self._client.post(ANNOUNCEMENTS)
        except httpx.HTTPError:
            pass  # Replicas then find the version at their next poll.
