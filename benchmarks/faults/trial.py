"""One job on a small cluster, from the first attempt to the candidate, with its recorded progress."""

import itertools
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.faults.attempts import Job
from benchmarks.faults.bucket import TcpProxy
from benchmarks.faults.nodes import Nodes
from cmcl.contract.job import Progress

_SECONDS_BETWEEN_LOOKS = 0.05
_MOST_ATTEMPTS = 3


@dataclass(frozen=True)
class ProgressSample:
    """A progress report, with its time (monotonic clock) and attempt."""

    at: float
    attempt: int
    progress: Progress

    @property
    def done(self) -> int:
        """Number of updates; 0 before training."""
        return self.progress.updates_done if self.progress.phase == "training" else 0


@dataclass
class ProgressLog:
    """All distinct progress reports of a job."""

    job: Job
    seen: list[ProgressSample] = field(default_factory=list)

    def sample(self, attempt: int) -> ProgressSample | None:
        """Read the current report, or return None if there is none."""
        progress = self.job.progress(attempt)
        if progress is None:
            return None
        found = ProgressSample(time.monotonic(), attempt, progress)
        last = self.seen[-1] if self.seen else None
        if last is None or (last.attempt, last.progress) != (attempt, progress):
            self.seen.append(found)
        return found

    def done_before(self, moment: float) -> int:
        """Return the updates reported before that time."""
        return max((each.done for each in self.seen if each.at <= moment), default=0)

    def resumed_after(self, moment: float) -> ProgressSample | None:
        """Return the first report of an update by ranks that started after that time."""
        is_new, before = False, self.done_before(moment)
        attempt = max((each.attempt for each in self.seen if each.at <= moment), default=1)
        for each in (each for each in self.seen if each.at > moment):
            starts_over = each.progress.phase in ("starting", "reading", "moments")
            is_new = is_new or each.attempt != attempt or starts_over or 0 < each.done < before
            if is_new and each.done > (each.progress.resumed_at or 0):
                return each
        return None

    def longest_pause_after(self, moment: float) -> float:
        """Return the longest time in seconds without a new update."""
        times = [moment, *(each.at for each in self.seen if each.at > moment and each.done)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def done_after(self, moment: float) -> int:
        """Return the updates between the last report before that time and the first one after
        it."""
        before = self.done_before(moment)
        later = (each.done for each in self.seen if each.at > moment and each.done > before)
        return next(later, before) - before


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

    def watch_for(self, seconds: float) -> None:
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
            self.watch.sample(self.attempt)
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
