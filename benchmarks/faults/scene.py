"""One job on a small cluster, from its first attempt to its candidate."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.faults.attempts import Job
from benchmarks.faults.bucket import Door
from benchmarks.faults.nodes import Nodes
from benchmarks.faults.watch import Watch

_SECONDS_BETWEEN_LOOKS = 0.05
_MOST_ATTEMPTS = 3


class SceneError(Exception):
    """It did not go on as it must; the message says where it stood."""


@dataclass
class Scene:
    """`ranks`: how many at most and at least. `door` is the way to the store, where there is one."""

    nodes: Nodes
    job: Job
    ranks: tuple[int, int]
    door: Door | None
    seconds: float
    attempt: int = 0
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.job)
        self._deadline = time.monotonic() + self.seconds
        self._driver = self._start()

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        """Of the present attempt."""
        return self._driver

    @property
    def driver_log(self) -> str:
        """The name of its log."""
        return f"driver-{self.attempt}"

    def train_until(self, share: float) -> None:
        """Until so much of all updates is done."""
        self._until(lambda: self._share() >= share)

    def look_on(self, seconds: float) -> None:
        """Only watch for a while."""
        until = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= until)

    def finish(self) -> None:
        """Until an attempt made a candidate; what is lost is followed by another attempt."""
        while self._ended() != 0:
            if self.attempt == _MOST_ATTEMPTS:
                raise SceneError(f"{_MOST_ATTEMPTS} attempts were lost; {self._where()}")
            self._driver = self._start()

    def stop(self) -> None:
        """End the present attempt's driver, if it is there."""
        self._driver.kill()
        self._driver.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        self.attempt += 1
        if self.attempt > 1:
            self.job.next_attempt(self.attempt)
        command = self.job.command(self.attempt, *self.ranks)
        return self.nodes.start_driver(command, self.driver_log)

    def _ended(self) -> int:
        self._until(lambda: self._driver.poll() is not None)
        return int(self._driver.wait())

    def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if time.monotonic() > self._deadline:
                raise SceneError(f"not done within {self.seconds:g} s; {self._where()}")
            self.watch.look(self.attempt)
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _share(self) -> float:
        last = self.watch.seen[-1] if self.watch.seen else None
        if last is None or not last.done:
            return 0.0
        if last.done == last.progress.updates_total:
            raise SceneError(f"it was over before anything happened; {self._where()}")
        return last.done / last.progress.updates_total

    def _where(self) -> str:
        last = self.watch.seen[-1].progress if self.watch.seen else None
        return f"attempt {self.attempt} at {last}; see {self.nodes.log(self.driver_log)}"
