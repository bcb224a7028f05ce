"""Metrics of a replica as a port, so that API and follower run without Ray."""

from itertools import count
from time import perf_counter
from typing import Protocol

_OBSERVED = 8
_requests = count()


class ServeMetrics(Protocol):
    """Counts events, from any thread."""

    def answered(self, model: str, rows: int, seconds: float) -> None:
        """A request got its embeddings, so many seconds after its first byte."""
        ...

    def finished(self, status: int) -> None:
        """A request ended with this status."""
        ...

    def batch(self, requests: int, rows: int) -> None:
        """One product computed so many rows of so many requests."""
        ...

    def stage(self, name: str, seconds: float) -> None:
        """A request spent so long in one stage: read, look_up, encode, embed, write."""
        ...

    def swapped(self, model: str, version: int, seconds: float) -> None:
        """A version became live, so many seconds after its pointer was read."""
        ...

    def refused(self, model: str, kind: str) -> None:
        """A version could not be used, or not yet; the one before keeps answering.

        `kind`: unavailable, missing, damaged, too_large or error.
        """
        ...

    def encoder_refused(self, model: str, modality: str, reason: str) -> None:
        """A request of raw items was refused because of the encoder. `reason`: mismatch or not_configured."""
        ...

    def lag(self, model: str, generations: int) -> None:
        """How many generations the live version is behind the pointer."""
        ...

    def gone(self, model: str) -> None:
        """The model was deleted."""
        ...

    def loaded_versions(self, versions: int) -> None:
        """How many versions of all models are in memory."""
        ...

    def loaded(self, model: str, seconds: float) -> None:
        """A version's heads were loaded, in so many seconds."""
        ...

    def evicted(self, model: str) -> None:
        """A version's heads were evicted because the budget for heads was full."""
        ...

    def key_list_refused(self) -> None:
        """A list of keys was not valid; the one before stays in force."""
        ...

    def connected(self, announcements: bool) -> None:
        """Whether this replica receives announcements, or only polls."""
        ...

    def shadowed(self, model: str, pair: str, cosine: float, overlap: float) -> None:
        """Mean agreement of the canary's scores across a pair with the live version's."""
        ...

    def canary_ended(self, model: str) -> None:
        """The canary of the model has ended: drop its agreement."""
        ...

    def shadow_dropped(self, model: str) -> None:
        """A request was not shadowed because the queue was full."""
        ...


class StageTimer:
    """Times the stages of one request in eight, since observing costs time as well. Starts with the request."""

    def __init__(self, metrics: ServeMetrics) -> None:
        self._metrics = metrics
        self._begun = self._last = perf_counter()
        self._is_observed = next(_requests) % _OBSERVED == 0

    def stage(self, stage: str) -> None:
        """End this stage."""
        if self._is_observed:
            now = perf_counter()
            self._metrics.stage(stage, now - self._last)
            self._last = now

    @property
    def seconds(self) -> float:
        """Seconds since the request began."""
        return perf_counter() - self._begun
