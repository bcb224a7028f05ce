"""Faults of a serving system, and the wait for its recovery."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.endpoint.bodies import Array
from benchmarks.endpoint.ours import Ours, Probe

_AWAY_SECONDS = 5.0
_PATIENCE = 90.0
_LOOK_SECONDS = 0.1
_CONTROLLER = "ServeController"


@dataclass(frozen=True)
class Scene:
    """The system, and a row to query its parts with."""

    ours: Ours
    rows_BF: Array

    def wait_until_whole(self, gone: set[int]) -> None:
        """Wait until HAProxy and two replicas respond, and no killed process remains.

        Raises TimeoutError.
        """
        deadline = time.monotonic() + _PATIENCE
        while not self._is_whole(gone):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not recovered after {_PATIENCE:g} s")
            time.sleep(_LOOK_SECONDS)

    def _is_whole(self, gone: set[int]) -> bool:
        replicas = {each.pid for each in self.ours.replicas()} - gone
        if len(replicas) < 2 or not self.ours.proxy():
            return False
        doors = [*self.ours.doors().values(), self.ours.address]
        return len(doors) == 3 and all(self._answers(door) for door in doors)

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
    act: Callable[[Scene], set[int]]


def _kill(processes: list[psutil.Process]) -> set[int]:
    if not processes:
        raise LookupError("found no process to kill")
    for process in processes:
        process.kill()
    return {process.pid for process in processes}


def _replica(scene: Scene) -> set[int]:
    return _kill(scene.ours.replicas()[:1])


def _proxy(scene: Scene) -> set[int]:
    return _kill(scene.ours.proxy())


def _controller(scene: Scene) -> set[int]:
    return _kill(scene.ours.find(_CONTROLLER))


def _node(scene: Scene) -> set[int]:
    """Kill the second node and start a replacement at once, like an autoscaler."""
    before = {each.pid for each in scene.ours.replicas()}
    scene.ours.kill_second_node()
    after = {each.pid for each in scene.ours.replicas()}
    scene.ours.start_second_node()
    return before - after


def _store(scene: Scene) -> set[int]:
    folder = scene.ours.stack.folder / "store"
    away = Path(f"{folder}.away")
    folder.rename(away)
    time.sleep(_AWAY_SECONDS)
    away.rename(folder)
    return set()


CASES = {
    "replica": Case("a replica, kill -9", _replica),
    "node": Case("the Ray node of a replica, kill -9; another joins", _node),
    "proxy": Case("HAProxy, kill -9", _proxy),
    "controller": Case("Serve's controller, kill -9", _controller),
    "store": Case(f"the store is away for {_AWAY_SECONDS:g} s", _store),
}
