"""Moves the live pointer as the control plane does.

Nobody asks the replicas beside the clients: two that did, every four milliseconds at the replicas' own
doors, were half as much load again while versions swapped, and their own measurement (docs/log.md).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from benchmarks.endpoint.stored import MODEL
from cmcl.contract.version import ANNOUNCEMENTS, Announcement, LivePointer
from workers.storage.object_store import ObjectStore
from workers.storage.versions import write_live

_PATIENCE = 20.0
# Every so often it goes back to the version before: a roll back, which is still in memory.
_ROLLBACK_EVERY = 5


@dataclass(frozen=True)
class Move:
    """`at`: by time.time(), just before the pointer was written; `announced`: seconds from then on."""

    version: int
    is_rollback: bool
    at: float
    announced: float


def order(versions: int) -> Iterator[tuple[int, bool]]:
    """Without an end: version after version in a circle, which pushes the first out of memory
    before it comes again; now and then one step back, and whether it is one."""
    step, now = 0, 1
    while True:
        step += 1
        is_rollback = step % _ROLLBACK_EVERY == 0
        now = (now - 1 + (-1 if is_rollback else 1)) % versions + 1
        yield now, is_rollback


class Mover:
    """`address`: of the endpoint, which is told of each move."""

    def __init__(self, store: ObjectStore, address: str) -> None:
        self._store = store
        self._client = httpx.Client(base_url=address, timeout=_PATIENCE)
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
        """As the control plane does: nothing depends on it, a replica looks by itself as well."""
        news = Announcement(model=MODEL, generation=self._generation)
        try:
            self._client.post(ANNOUNCEMENTS, content=news.model_dump_json())
        except httpx.HTTPError:
            pass  # Then they find out at their next look, and the answers tell.
