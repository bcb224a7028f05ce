"""Scales with round ticks, labels that do not overlap, lines with as many points as can be seen, and numbers as text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cmcl.pictures.svg import text_width

Point = tuple[float, float]
MINUS = "−"


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels. Values outside the range are moved to its ends."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value. A range of no width is drawn in the middle."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round values from at or below `low` to at or above `high`.

    Steps are 1, 2, 2.5 or 5 times a power of ten. Equal or non-finite ends are widened or replaced.
    """
    low, high = sorted(value if math.isfinite(value) else 0.0 for value in (low, high))
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        half = abs(high) / 2 or 0.5
        low, high = low - half, high + half
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next((each for each in (1, 2, 2.5, 5) if each * power >= rough), 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def decimals(step: float) -> int:
    """Return how many decimals the multiples of a step of `nice_ticks` have."""
    return next((each for each in range(12) if abs(step - round(step, each)) < 1e-6 * step), 12)


def ticks_that_fit(
    ticks: Sequence[float], write: Callable[[float], str], length: float, size: float
) -> list[float]:
    """Return every tick, or every second, fifth, ..., so that labels on a line do not touch."""
    widest = max((text_width(write(each), size) for each in ticks), default=0.0)
    room = max(1, int(length / (widest + 14)))
    every = next(each for each in (1, 2, 5, 10, 20, 50, 10**9) if len(ticks) <= room * each)
    return list(ticks[::every])


def spread(wanted: Sequence[float], size: float, low: float, high: float) -> list[float]:
    """Return centres near those wanted, in their order and at least `size` apart, from `low` to `high`.

    If there are more than fit, they continue above `low`.
    """
    placed, above = list(wanted), low - size
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    for index in order:
        above = placed[index] = max(wanted[index], above + size)
    below = high + size
    for index in reversed(order):
        below = placed[index] = min(placed[index], below - size)
    return placed


def thinned(points: Sequence[Point], count: int = 120) -> list[Point]:
    """Return at most about `count` points of a line: the first, the last, and the extremes between."""
    if len(points) <= count:
        return list(points)
    buckets = max(1, count // 2)
    kept = [points[0]]
    for bucket in range(buckets):
        start, end = (len(points) * each // buckets for each in (bucket, bucket + 1))
        inside = points[start:end]
        extremes = {min(inside, key=lambda p: p[1]), max(inside, key=lambda p: p[1])}
        kept.extend(sorted(extremes - {kept[-1]}))
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def segments(points: Sequence[tuple[float, float | None]]) -> list[list[Point]]:
    """Return the runs of points that have a finite value."""
    runs: list[list[Point]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


# --- Numbers as text ------------------------------------------------------------------------------


def percent(share: float | None, places: int = 1) -> str:
    """Return a share as per cent without the sign, `73.4`, or a dash where there is none."""
    return plain(None if share is None else 100 * share, places)


def fine_percent(share: float | None) -> str:
    """Return a share that may be small as per cent without the sign: `123.4`, `8.62`, `0.0123`."""
    if share is None or not math.isfinite(share) or abs(share) >= 0.1:
        return percent(share)
    return significant(100 * share)


def points_of(share: float | None, places: int = 1) -> str:
    """Return a change of a share in points with its sign, `+1.2`; a dash where there is none; zero has no sign."""
    written = percent(share, places)
    is_positive = share is not None and share > 0 and written.strip("0.–") != ""
    return f"+{written}" if is_positive else written


def plain(value: float | None, places: int) -> str:
    """Return a number with `places` decimals and a true minus sign, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    written = f"{value:.{places}f}"
    if float(written) == 0:
        return written.removeprefix("-")
    return written.replace("-", MINUS)


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, `0.0123`, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}g}".replace("-", MINUS)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: `1 version`, `1,000 versions`, `3 modalities`."""
    many = f"{noun[:-1]}ies" if noun.endswith("ty") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else many}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: `850 ms`, `12.3 s`, `4 min 10 s`, `3 h 5 min`."""
    sign, seconds = (MINUS, -seconds) if seconds < 0 else ("", seconds)
    if seconds < 1:
        return f"{sign}{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{sign}{seconds:.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for (large, size), (small, part) in pairwise(units):
        if whole >= size:
            rest = whole % size // part
            return f"{sign}{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{sign}{whole} s"
