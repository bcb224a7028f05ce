"""Observations of canaries: counted in the replica, and written to the store for the control plane.

Counts are totals since the canary began, so the next document makes up for one that could not be written: a
store that is down costs freshness and nothing else.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cmcl.contract.errors import WorkerError
from cmcl.contract.policy import Observation, PairAgreement
from workers.serve.telemetry import LogOnce, ServeMetrics
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import ServedVersion
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

# CanaryMonitor that ended while the store was down; the oldest go first.
_MOST_ENDED = 16
_WHAT = "observations of canaries"


@dataclass(frozen=True)
class Canary:
    """A canary beside the live version of a model.

    `loaded` is None while the replica has not loaded its version, or cannot; `refused` says why. `revision`: of the
    pointer that started the canary; `version`: its version's number; `shadow`: the share of the live version's
    requests to score with the canary as well.
    """

    model: str
    revision: int
    version: int
    live: ServedVersion
    loaded: ServedVersion | None
    shadow: float
    refused: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Key of the counts: a restarted canary counts from zero."""
        return (self.model, self.revision)


def canary_of(model: str, versions: LiveVersions) -> Canary | None:
    """Return the canary of a model; None where there is none."""
    live = versions.get(model)
    if live is None or live.canary is None:
        return None
    number = live.canary.version
    reasons = [each.reason for each in versions.refusals(model) if each.version == number]
    return Canary(
        model,
        live.canary.revision,
        number,
        live.version,
        live.loaded_canary,
        live.canary.shadow,
        refused=reasons[0] if reasons and live.loaded_canary is None else None,
    )


def all_canaries(versions: LiveVersions) -> list[Canary]:
    """Return the canaries of all models."""
    found = (canary_of(model, versions) for model in versions.all())
    return [canary for canary in found if canary is not None]


@dataclass
class _Seen:
    canary: Canary
    answered: int = 0
    failed: int = 0
    shadowed: int = 0
    pairs: dict[str, PairAgreement] = field(default_factory=dict)
    is_over: bool = False
    changes: int = 1
    written: int = 0

    def document(self, replica: str, now: datetime) -> Observation:
        return Observation(
            replica=replica,
            revision=self.canary.revision,
            version=self.canary.version,
            answered=self.answered,
            failed=self.failed,
            shadowed=self.shadowed,
            refused=self.canary.refused,
            pairs=self.pairs,
            at=now,
        )


class Observations:
    """Counts by canary. Used from one event loop.

    A count that comes after the last document of a canary was written is dropped: counts that start from zero
    would replace that document.
    """

    def __init__(self, metrics: ServeMetrics) -> None:
        self._metrics = metrics
        self._seen: dict[tuple[str, int], _Seen] = {}

    def update(self, current: Iterable[Canary]) -> list[str]:
        """Note the present canaries. Returns the models whose canary has ended since the last call."""
        canaries = {canary.key: canary for canary in current}
        for canary in canaries.values():
            seen = self._of(canary)
            if seen.canary.refused != canary.refused:
                seen.changes += 1
            seen.canary, seen.is_over = canary, False
        ended = [
            seen for key, seen in self._seen.items() if key not in canaries and not seen.is_over
        ]
        for seen in ended:
            seen.is_over = True
        self._drop_ended()
        return [seen.canary.model for seen in ended]

    def begin(self, canary: Canary) -> None:
        """Begin to count. Only for a present canary."""
        self._of(canary)

    def answered(self, canary: Canary) -> None:
        """Count a request that the canary has answered."""
        seen = self._seen.get(canary.key)
        if seen is not None:
            seen.answered += 1
            seen.changes += 1

    def failed(self, canary: Canary) -> int:
        """Count a request that failed because of the canary. Returns the failures so far."""
        seen = self._seen.get(canary.key)
        if seen is None:
            return 0
        seen.failed += 1
        seen.changes += 1
        return seen.failed

    def scored(self, canary: Canary, agreements: Mapping[str, PairAgreement]) -> None:
        """Count a request that both versions have scored; not where no pair could be scored."""
        seen = self._seen.get(canary.key)
        if seen is None or not agreements:
            return
        seen.shadowed += 1
        seen.changes += 1
        for pair, found in agreements.items():
            total = seen.pairs[pair] = seen.pairs.get(pair, PairAgreement()) + found
            cosine, overlap = total.cosine_sum / total.queries, total.overlap_sum / total.queries
            self._metrics.shadowed(canary.model, pair, cosine, overlap)

    def unwritten(self, replica: str, now: datetime) -> Iterator[tuple[str, bytes, _Seen, int]]:
        """Yield key, document, and what to pass to `written` once it is stored."""
        for seen in list(self._seen.values()):
            if seen.changes > seen.written:
                key = layout.observation(seen.canary.model, seen.canary.revision, replica)
                document = seen.document(replica, now).model_dump_json().encode()
                yield key, document, seen, seen.changes

    def written(self, seen: _Seen, changes: int) -> None:
        """Note that the document of that many changes is stored."""
        seen.written = changes
        if seen.is_over and seen.changes == changes:
            self._seen.pop(seen.canary.key, None)

    def _of(self, canary: Canary) -> _Seen:
        return self._seen.setdefault(canary.key, _Seen(canary))

    def _drop_ended(self) -> None:
        ended = [key for key, seen in self._seen.items() if seen.is_over]
        done = [key for key in ended if self._seen[key].changes == self._seen[key].written]
        for key in {*done, *ended[: max(len(ended) - _MOST_ENDED, 0)]}:
            del self._seen[key]


class ObservationWriter:
    """Writes documents that have changed, in another thread than the event loop."""

    def __init__(
        self,
        store: ObjectStore,
        observations: Observations,
        replica: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._observations = observations
        self._replica = replica
        self._clock = clock
        self._log = LogOnce(logger, "%s cannot be written, will retry: %s")

    async def write(self) -> None:
        """Write once. What fails is tried again the next time."""
        for key, document, seen, changes in self._observations.unwritten(
            self._replica, self._clock()
        ):
            try:
                await asyncio.to_thread(self._store.put, key, document)
            except WorkerError as error:
                self._log.failed(_WHAT, error)
                return
            self._observations.written(seen, changes)
        self._log.recovered(_WHAT)
