"""Moves the live pointer as the control plane does, and watches when each replica answers by it."""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from benchmarks.endpoint.bodies import Array
from benchmarks.endpoint.ours import Probe
from benchmarks.endpoint.stored import MODEL
from workers.contract.version import ANNOUNCEMENTS, Announcement, LivePointer
from workers.storage.port import ObjectStore
from workers.storage.versions import write_live

_PAUSE = 0.004
_PATIENCE = 20.0
# Every so often it goes back to the version before: a roll back, which is still in memory.
_ROLLBACK_EVERY = 5


@dataclass(frozen=True)
class Swap:
    """One move. `at`: by time.time(), when the pointer was written; `seconds`: until each replica
    answered with the version, by its name; None where one did not in time."""

    version: int
    is_rollback: bool
    at: float
    announced: float
    seconds: dict[str, float | None]

    @property
    def everywhere(self) -> float | None:
        """Seconds until the last of them did."""
        found = [each for each in self.seconds.values() if each is not None]
        return max(found) if len(found) == len(self.seconds) else None


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
    """`doors`: the replicas' own addresses, by name; asked directly, so that each is seen."""

    def __init__(
        self, store: ObjectStore, address: str, doors: Mapping[str, str], rows_BF: Array
    ) -> None:
        self._store = store
        self._announcements = address + ANNOUNCEMENTS
        self._probes = {name: Probe(door, rows_BF) for name, door in doors.items()}
        self._watchers = ThreadPoolExecutor(len(doors), thread_name_prefix="watch")
        self._generation = 1

    def close(self) -> None:
        """Hang up."""
        self._watchers.shutdown()
        for probe in self._probes.values():
            probe.close()

    def move(self, version: int, *, is_rollback: bool = False) -> Swap:
        """Write the pointer, announce it, wait until all answer by it."""
        self._generation += 1
        pointer = LivePointer(generation=self._generation, version=version)
        written = threading.Event()
        moment = [0.0]

        def watch(probe: Probe) -> float | None:
            written.wait()
            return _watched(probe, version, moment[0])

        watching = {name: self._watchers.submit(watch, p) for name, p in self._probes.items()}
        at = time.time()
        moment[0] = time.perf_counter()
        write_live(self._store, MODEL, pointer)
        written.set()
        self._announce()
        announced = time.perf_counter() - moment[0]
        seconds = {name: each.result() for name, each in watching.items()}
        return Swap(version, is_rollback, at, announced, seconds)

    def _announce(self) -> None:
        """As the control plane does: nothing depends on it, a replica looks by itself as well."""
        news = Announcement(model=MODEL, generation=self._generation)
        try:
            httpx.post(self._announcements, content=news.model_dump_json(), timeout=_PATIENCE)
        except httpx.HTTPError:
            pass  # Then they find out at their next look, and the seconds tell.


def _watched(probe: Probe, version: int, begin: float) -> float | None:
    while time.perf_counter() - begin < _PATIENCE:
        if probe.version() == version:
            return time.perf_counter() - begin
        time.sleep(_PAUSE)
    return None
