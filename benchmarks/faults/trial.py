"""One job on a small cluster, from the first attempt to the candidate."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.faults.attempts import Job
from benchmarks.faults.bucket import TcpProxy
from benchmarks.faults.nodes import Nodes
from benchmarks.faults.watch import ProgressLog

_SECONDS_BETWEEN_LOOKS = 0.05
_MOST_ATTEMPTS = 3


class TrialError(Exception):
    """The job did not proceed as expected. The message has its progress."""


@dataclass
class Trial:
    """A job and its cluster. `ranks`: maximum and minimum. `proxy`: the proxy before the store, if
    any."""

    nodes: Nodes
    job: Job
    ranks: tuple[int, int]
    proxy: TcpProxy | None
    seconds: float
    attempt: int = 0
    watch: ProgressLog = field(init=False)

    def __post_init__(self) -> None:
        self.watch = ProgressLog(self.job)
        self._deadline = time.monotonic() + self.seconds
        self._driver = self._start()

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        """Driver of the current attempt."""
        return self._driver

    @property
    def driver_log(self) -> str:
        """Name of the driver's log."""
        return f"driver-{self.attempt}"

    def train_until(self, share: float) -> None:
        """Wait until this share of the updates is done."""
        self._until(lambda: self._share() >= share)

    def look_on(self, seconds: float) -> None:
        """Record progress for some seconds."""
        until = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= until)

    def finish(self) -> None:
        """Run until an attempt produces a candidate. Lost attempts are followed by another one."""
        while self._ended() != 0:
            if self.attempt == _MOST_ATTEMPTS:
                raise TrialError(f"{_MOST_ATTEMPTS} attempts were lost; {self._where()}")
            self._driver = self._start()

    def stop(self) -> None:
        """Stop the current driver, if any."""
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
                raise TrialError(f"not done within {self.seconds:g} s; {self._where()}")
            self.watch.look(self.attempt)
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _share(self) -> float:
        last = self.watch.seen[-1] if self.watch.seen else None
        if last is None or not last.done:
            return 0.0
        if last.done == last.progress.updates_total:
            raise TrialError(f"training ended before the fault; {self._where()}")
        return last.done / last.progress.updates_total

    def _where(self) -> str:
        last = self.watch.seen[-1].progress if self.watch.seen else None
        return f"attempt {self.attempt} at {last}; see {self.nodes.log(self.driver_log)}"
