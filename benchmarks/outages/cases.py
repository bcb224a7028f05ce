"""Faults of a serving system, and the wait for its recovery."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.endpoint.messages import Array
from benchmarks.endpoint.serve_stack import EndpointStack, Probe

_AWAY_SECONDS = 5.0
_RECOVERY_SECONDS = 90.0
_LOOK_SECONDS = 0.1
_CONTROLLER = "ServeController"


@dataclass(frozen=True)
class System:
    """The system, and a row to query its parts with."""

    endpoint: EndpointStack
    rows_BF: Array

    def wait_until_recovered(self, gone: set[int]) -> None:
        """Wait until HAProxy and two replicas respond, and no killed process remains.

        Raises TimeoutError.
        """
        deadline = time.monotonic() + _RECOVERY_SECONDS
        while not self._has_recovered(gone):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not recovered after {_RECOVERY_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)

    def _has_recovered(self, gone: set[int]) -> bool:
        replicas = {each.pid for each in self.endpoint.replicas()} - gone
        if len(replicas) < 2 or not self.endpoint.proxy():
            return False
        addresses = [*self.endpoint.replica_addresses().values(), self.endpoint.address]
        return len(addresses) == 3 and all(self._answers(address) for address in addresses)

    def _answers(self, address: str) -> bool:
        probe = Probe(address, self.rows_BF)
        try:
            return probe.version() > 0
        finally:
            probe.close()


@dataclass(frozen=True)
class Case:
    """A fault. `act` causes it and returns the ids of the killed processes."""

    words: str
    act: Callable[[System], set[int]]


def _kill(processes: list[psutil.Process]) -> set[int]:
    if not processes:
        raise LookupError("found no process to kill")
    for process in processes:
        process.kill()
    return {process.pid for process in processes}


def _replica(system: System) -> set[int]:
    return _kill(system.endpoint.replicas()[:1])


def _proxy(system: System) -> set[int]:
    return _kill(system.endpoint.proxy())


def _controller(system: System) -> set[int]:
    return _kill(system.endpoint.find(_CONTROLLER))


def _node(system: System) -> set[int]:
    """Kill the second node and start a replacement at once, like an autoscaler."""
    before = {each.pid for each in system.endpoint.replicas()}
    system.endpoint.kill_second_node()
    after = {each.pid for each in system.endpoint.replicas()}
    system.endpoint.start_second_node()
    return before - after


def _store(system: System) -> set[int]:
    folder = system.endpoint.stack.folder / "store"
    away = Path(f"{folder}.away")
    folder.rename(away)
    time.sleep(_AWAY_SECONDS)
    away.rename(folder)
    return set()


CASES = {
    "replica": Case("a replica, kill -9", _replica),
    "node": Case("the Ray node of a replica, kill -9, with a replacement", _node),
    "proxy": Case("HAProxy, kill -9", _proxy),
    "controller": Case("Serve's controller, kill -9", _controller),
    "store": Case(f"the store is unavailable for {_AWAY_SECONDS:g} s", _store),
}
