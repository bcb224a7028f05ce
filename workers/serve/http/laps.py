"""Where the time of a request goes; told of one request in eight, since telling costs time too."""

from itertools import count
from time import perf_counter

from workers.serve.metrics import ServeMetrics

_OBSERVED = 8
_requests = count()


class Laps:
    """Begins with the request."""

    def __init__(self, metrics: ServeMetrics) -> None:
        self._metrics = metrics
        self._begun = self._last = perf_counter()
        self._is_observed = next(_requests) % _OBSERVED == 0

    def lap(self, stage: str) -> None:
        """This stage is over."""
        if self._is_observed:
            now = perf_counter()
            self._metrics.stage(stage, now - self._last)
            self._last = now

    @property
    def seconds(self) -> float:
        """Since the request began."""
        return perf_counter() - self._begun
