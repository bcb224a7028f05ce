"""Memory of the replicas during swaps, and its growth."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

_EVERY_SECONDS = 0.5
_BLOCKS = 10
# Two-sided 95 % of Student's t with 8 degrees of freedom: ten blocks, two parameters.
_T = 2.306


@dataclass(frozen=True)
class Slope:
    """MiB per hundred swaps, and half of its 95 % interval."""

    value: float
    half_width: float

    @property
    def grows(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.value - self.half_width > 0


class Memory:
    """Resident memory of processes, sampled by a thread until the block ends."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self._processes = processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self.times: list[float] = []
        self.mebibytes: dict[int, list[float]] = {each.pid: [] for each in processes}

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            self.times.append(time.time())
            for process in self._processes:
                self.mebibytes[process.pid].append(_mebibytes(process))


def slope(swaps: Sequence[float], mebibytes: Sequence[float]) -> Slope | None:
    """Return the slope of memory over the number of swaps, or None with too few samples.

    Uses means of ten blocks, because neighbouring samples are correlated and would make the
    interval too small.
    """
    known = [(s, m) for s, m in zip(swaps, mebibytes, strict=True) if not math.isnan(m)]
    if len(known) < 2 * _BLOCKS:
        return None
    blocks = np.array_split(np.array(known), _BLOCKS)
    x_N, y_N = np.array([block.mean(axis=0) for block in blocks]).T
    away_N = x_N - x_N.mean()
    value = float(away_N @ y_N / (away_N @ away_N))
    left_N = y_N - y_N.mean() - value * away_N
    error = math.sqrt(float(left_N @ left_N) / (_BLOCKS - 2) / float(away_N @ away_N))
    return Slope(100 * value, 100 * _T * error)


def _mebibytes(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.NoSuchProcess:
        return math.nan
