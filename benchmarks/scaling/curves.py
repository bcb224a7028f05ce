"""Interpolation of measurements at a few sizes."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Points (size, seconds) in rising order, with linear interpolation and extrapolation on
    logarithmic axes."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def through(cls, found: Mapping[float, float]) -> "Curve":
        """Return a curve through all points. Raises ValueError for fewer than two."""
        if len(found) < 2:
            raise ValueError(f"a curve needs at least 2 points, these are {len(found)}")
        return cls(tuple(sorted(found.items())))

    def at(self, size: float) -> float:
        """Return the seconds for this size; 0 for size 0."""
        if size <= 0:
            return 0.0
        sizes = [point[0] for point in self.points]
        above = min(max(bisect_left(sizes, size), 1), len(sizes) - 1)
        (left, low), (right, high) = self.points[above - 1 : above + 1]
        share = math.log(size / left) / math.log(right / left)
        return low * math.pow(high / low, share)
