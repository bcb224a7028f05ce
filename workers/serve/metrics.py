"""What a replica counts, as a port: HTTP and follower can be tested without Ray."""

from itertools import count
from time import perf_counter
from typing import Protocol


class ServeMetrics(Protocol):
    """Told about each event, from any thread."""

    def answered(self, model: str, rows: int, seconds: float) -> None:
        """A request got its embeddings, so long after its first byte was seen."""
        ...

    def finished(self, status: int) -> None:
        """A request of any kind ended, with this status."""
        ...

    def batch(self, requests: int, rows: int) -> None:
        """So many rows of so many requests were multiplied together."""
        ...

    def stage(self, name: str, seconds: float) -> None:
        """One request spent so long in one stage: read, look_up, encode, embed, write."""
        ...

    def swapped(self, model: str, version: int, seconds: float) -> None:
        """Another version answers from now on, so long after its pointer was seen."""
        ...

    def refused(self, model: str, kind: str) -> None:
        """A version could not be used, or not yet; the one before goes on answering.

        `kind`: unavailable, missing, damaged, too_large or error.
        """
        ...

    def lag(self, model: str, generations: int) -> None:
        """How far what answers is behind the pointer that was seen last."""
        ...

    def gone(self, model: str) -> None:
        """The model was deleted; nothing answers for it."""
        ...

    def resident(self, versions: int) -> None:
        """So many versions of all models are in memory."""
        ...

    def loaded(self, model: str, seconds: float) -> None:
        """A version's heads were brought into memory, in so many seconds."""
        ...

    def evicted(self, model: str) -> None:
        """A version's heads left memory because the budget for heads was full."""
        ...

    def key_list_refused(self) -> None:
        """A list of keys was not believed; the one before stays in force."""
        ...

    def connected(self, announcements: bool) -> None:
        """Whether this replica is told at once when something changes, or looks by itself alone."""
        ...

    def shadowed(self, model: str, pair: str, cosine: float, overlap: float) -> None:
        """How the candidate's scores across a pair agree with the live version's, mean so far."""
        ...

    def canary_ended(self, model: str) -> None:
        """The model's trial is over: its shadow's agreement describes nothing that is there now."""
        ...

    def shadow_dropped(self, model: str) -> None:
        """A request was to be scored by the candidate as well, and there was no time for it."""
        ...


_OBSERVED = 8
_requests = count()


class StageTimer:
    """Begins with the request."""

    def __init__(self, metrics: ServeMetrics) -> None:
        self._metrics = metrics
        self._begun = self._last = perf_counter()
        self._is_observed = next(_requests) % _OBSERVED == 0

    def stage(self, stage: str) -> None:
        """This stage is over."""
        if self._is_observed:
            now = perf_counter()
            self._metrics.stage(stage, now - self._last)
            self._last = now

    @property
    def seconds(self) -> float:
        """Since the request began."""
        return perf_counter() - self._begun
