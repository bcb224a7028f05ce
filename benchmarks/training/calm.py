"""Timing on a machine that others use, too: by windows, and those in which others were busy do not count.

A window is closed after at least a quarter of a second, which the kernel's clock of busy time can
resolve. What others used in it is the busy time of all cores less our own.
"""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import torch

WINDOW_SECONDS = 0.25
# Of all cores' time; the kernel counts in hundredths of a second.
_CALM_SHARE = 0.05
ENOUGH = 8
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Window:
    """Some units of work in a row. `cpu`: seconds that this process computed; `others`: share of all
    cores' time that others used meanwhile."""

    count: int
    seconds: float
    cpu: float
    others: float

    @property
    def of_one(self) -> float:
        """Seconds."""
        return self.seconds / self.count

    @property
    def is_calm(self) -> bool:
        """Hardly anybody else was there."""
        return self.others <= _CALM_SHARE


@dataclass(frozen=True)
class Timing:
    """Seconds of one unit of work, over the calm windows; over the calmest where there were too few.

    `cpu`: mean seconds of one that this process computed. Whoever waits for a core computes nothing,
    so it says how fast a process of one thread would be on a machine of its own.
    """

    median: float
    mean: float
    p95: float
    cpu: float
    windows: int
    calm_windows: int
    others: float

    def document(self) -> dict[str, float]:
        """For a JSON document."""
        return asdict(self)


class Windows:
    """Told after each unit of work. `peers`: processes of ours that do the same, this one included.
    `enough`: so many calm windows tell a time."""

    def __init__(self, peers: int = 1, enough: int = ENOUGH) -> None:
        self._peers, self._cores = peers, len(os.sched_getaffinity(0))
        self._enough = enough
        self._count = 0
        self._begin: tuple[float, float, float] | None = None
        self.all: list[Window] = []

    def tick(self) -> None:
        """Another unit is done; the first call begins the first window."""
        if self._begin is None:
            self._begin = self._clocks()
            return
        self._count += 1
        if time.perf_counter() - self._begin[0] >= WINDOW_SECONDS:
            now = self._clocks()
            self.all.append(self._window(self._begin, now))
            self._begin, self._count = now, 0

    def pause(self) -> None:
        """What comes until the next call of `tick` is not measured."""
        if self._begin is not None and self._count and not self.all:
            # A short window is better than none.
            self.all.append(self._window(self._begin, self._clocks()))
        self._begin, self._count = None, 0

    @property
    def is_enough(self) -> bool:
        """Enough calm windows to tell a time by."""
        return sum(window.is_calm for window in self.all) >= self._enough

    def chosen(self) -> list[int]:
        """Which of all windows count: the calm ones, or the calmest where there were too few."""
        calm = [number for number, window in enumerate(self.all) if window.is_calm]
        calmest = sorted(range(len(self.all)), key=lambda number: self.all[number].others)
        return calm if self.is_enough else calmest[: self._enough]

    def timing(self) -> Timing:
        """Raises ValueError where no window was closed."""
        if not self.all:
            raise ValueError("nothing was measured: one unit of work is none to be timed")
        chosen = [self.all[number] for number in self.chosen()]
        found = torch.tensor([window.of_one for window in chosen], dtype=torch.float64)
        return Timing(
            median=median(found.tolist()),
            mean=mean(found.tolist()),
            p95=float(found.quantile(0.95)),
            cpu=mean(window.cpu / window.count for window in chosen),
            windows=len(self.all),
            calm_windows=sum(window.is_calm for window in self.all),
            others=max(window.others for window in chosen),
        )

    def _window(self, begin: tuple[float, float, float], end: tuple[float, float, float]) -> Window:
        seconds, busy, own = (after - before for before, after in zip(begin, end, strict=True))
        others = max(0.0, busy - self._peers * own) / (seconds * self._cores)
        return Window(self._count, seconds, own, others)

    @staticmethod
    def _clocks() -> tuple[float, float, float]:
        return time.perf_counter(), _busy_seconds(), time.process_time()


def _busy_seconds() -> float:
    """All cores' time that was not idle, since the machine started; what a hypervisor took counts."""
    words = _STAT.read_text().split("\n", 1)[0].split()[1:9]
    idle, waiting = int(words[3]), int(words[4])
    return (sum(map(int, words)) - idle - waiting) / os.sysconf("SC_CLK_TCK")
