"""Timing on a shared machine: windows in which other processes were busy do not count.

A window lasts at least a quarter of a second, because of the resolution of the kernel's CPU
accounting. The use by other processes is the busy time of all cores without our own.
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
    """Consecutive units of work. `cpu`: CPU seconds of this process. `others`: share of all cores'
    time used by other processes."""

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
        """Whether other processes used almost no time."""
        return self.others <= _CALM_SHARE


@dataclass(frozen=True)
class Timing:
    """Seconds of one unit of work over the calm windows, or over the calmest if there are too few.

    `cpu`: mean CPU seconds of one unit. It excludes waiting for a core, so it shows the speed of a
    single-threaded process on an idle machine.
    """

    median: float
    mean: float
    p95: float
    cpu: float
    windows: int
    calm_windows: int
    others: float

    def document(self) -> dict[str, float]:
        """Return the JSON representation."""
        return asdict(self)


class WindowTimer:
    """Windows of a measurement; call `tick` after each unit of work. `enough`: required number of calm windows."""

    def __init__(self, enough: int = ENOUGH) -> None:
        self._cores = len(os.sched_getaffinity(0))
        self._enough = enough
        self._count = 0
        self._begin: tuple[float, float, float] | None = None
        self.all: list[Window] = []

    def tick(self) -> None:
        """Record the end of a unit. The first call starts the first window."""
        if self._begin is None:
            self._begin = self._clocks()
            return
        self._count += 1
        if time.perf_counter() - self._begin[0] >= WINDOW_SECONDS:
            now = self._clocks()
            self.all.append(self._window(self._begin, now))
            self._begin, self._count = now, 0

    def pause(self) -> None:
        """Exclude the time until the next call of `tick`."""
        if self._begin is not None and self._count and not self.all:
            # Keep a short window if it is the only one.
            self.all.append(self._window(self._begin, self._clocks()))
        self._begin, self._count = None, 0

    @property
    def is_enough(self) -> bool:
        """Whether there are enough calm windows."""
        return sum(window.is_calm for window in self.all) >= self._enough

    def timing(self) -> Timing:
        """Return the timing. Raises ValueError without a complete window."""
        if not self.all:
            raise ValueError("nothing was measured: at least 2 units of work are needed")
        calmest = sorted(self.all, key=lambda window: window.others)
        calm = [window for window in self.all if window.is_calm]
        chosen = calm if self.is_enough else calmest[: self._enough]
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
        others = max(0.0, busy - own) / (seconds * self._cores)
        return Window(self._count, seconds, own, others)

    @staticmethod
    def _clocks() -> tuple[float, float, float]:
        return time.perf_counter(), _busy_seconds(), time.process_time()


def _busy_seconds() -> float:
    """Return the non-idle time of all cores since boot, including time stolen by a hypervisor."""
    words = _STAT.read_text().split("\n", 1)[0].split()[1:9]
    idle, waiting = int(words[3]), int(words[4])
    return (sum(map(int, words)) - idle - waiting) / os.sysconf("SC_CLK_TCK")
