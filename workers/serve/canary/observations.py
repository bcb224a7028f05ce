"""What this replica has seen of each trial, and how the control plane gets to know it.

Counts are totals since the trial began, so a document that could not be written is made good by the
next one: a store that is down costs freshness and nothing else.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cmcl.contract.errors import WorkerError
from cmcl.contract.rollout import Observation, PairAgreement
from workers.serve.metrics import ServeMetrics
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import ServedVersion
from workers.storage import layout
from workers.storage.port import ObjectStore

logger = logging.getLogger(__name__)

# Trials that ended while the store was down; the oldest go first.
_MOST_ENDED = 16


@dataclass(frozen=True)
class Trial:
    """`candidate` is None while the replica has not loaded it, or cannot; `refused` says why.

    `revision`: of the pointer that began it; `version`: the candidate's number; `shadow`: of the
    live version's requests, the share to score by the candidate as well.
    """

    model: str
    revision: int
    version: int
    live: ServedVersion
    candidate: ServedVersion | None
    shadow: float
    refused: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Counts are kept by it: a trial that begins again begins at zero."""
        return (self.model, self.revision)


def trial_of(model: str, versions: LiveVersions) -> Trial | None:
    """None where the model has no candidate."""
    live = versions.get(model)
    if live is None or live.trial is None:
        return None
    number = live.trial.version
    reasons = [each.reason for each in versions.refusals(model) if each.version == number]
    return Trial(
        model,
        live.trial.revision,
        number,
        live.version,
        live.candidate,
        live.trial.shadow,
        refused=reasons[0] if reasons and live.candidate is None else None,
    )


def all_trials(versions: LiveVersions) -> list[Trial]:
    """Of every model that has a candidate."""
    found = (trial_of(model, versions) for model in versions.all())
    return [trial for trial in found if trial is not None]


@dataclass
class _Seen:
    trial: Trial
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
            revision=self.trial.revision,
            version=self.trial.version,
            answered=self.answered,
            failed=self.failed,
            shadowed=self.shadowed,
            refused=self.trial.refused,
            pairs=self.pairs,
            at=now,
        )


class Observations:
    """Counts by trial. Used from one event loop.

    What comes in late, after the last document of a trial was written, is dropped: counts that began
    anew would replace that document.
    """

    def __init__(self, metrics: ServeMetrics) -> None:
        self._metrics = metrics
        self._seen: dict[tuple[str, int], _Seen] = {}

    def look(self, current: Iterable[Trial]) -> list[str]:
        """Which trials there are now. Gives the models whose trial has ended since the last look."""
        trials = {trial.key: trial for trial in current}
        for trial in trials.values():
            seen = self._of(trial)
            if seen.trial.refused != trial.refused:
                seen.changes += 1
            seen.trial, seen.is_over = trial, False
        ended = [seen for key, seen in self._seen.items() if key not in trials and not seen.is_over]
        for seen in ended:
            seen.is_over = True
        self._drop_ended()
        return [seen.trial.model for seen in ended]

    def begin(self, trial: Trial) -> None:
        """Something is about to be counted. Only for a trial that there is now."""
        self._of(trial)

    def answered(self, trial: Trial) -> None:
        """The candidate has answered a request of its own."""
        seen = self._seen.get(trial.key)
        if seen is not None:
            seen.answered += 1
            seen.changes += 1

    def failed(self, trial: Trial) -> int:
        """A request failed because of the candidate. Gives the failures of the trial so far."""
        seen = self._seen.get(trial.key)
        if seen is None:
            return 0
        seen.failed += 1
        seen.changes += 1
        return seen.failed

    def scored(self, trial: Trial, agreements: Mapping[str, PairAgreement]) -> None:
        """A request of the live version was scored by both; not counted where no pair could be."""
        seen = self._seen.get(trial.key)
        if seen is None or not agreements:
            return
        seen.shadowed += 1
        seen.changes += 1
        for pair, found in agreements.items():
            total = seen.pairs[pair] = seen.pairs.get(pair, PairAgreement()) + found
            cosine, overlap = total.cosine_sum / total.queries, total.overlap_sum / total.queries
            self._metrics.shadowed(trial.model, pair, cosine, overlap)

    def unwritten(self, replica: str, now: datetime) -> Iterator[tuple[str, bytes, _Seen, int]]:
        """Key, document, and what to note in `written` once it lies there."""
        for seen in list(self._seen.values()):
            if seen.changes > seen.written:
                key = layout.observation(seen.trial.model, seen.trial.revision, replica)
                document = seen.document(replica, now).model_dump_json().encode()
                yield key, document, seen, seen.changes

    def written(self, seen: _Seen, changes: int) -> None:
        """The store has the document of that many changes."""
        seen.written = changes
        if seen.is_over and seen.changes == changes:
            self._seen.pop(seen.trial.key, None)

    def _of(self, trial: Trial) -> _Seen:
        return self._seen.setdefault(trial.key, _Seen(trial))

    def _drop_ended(self) -> None:
        ended = [key for key, seen in self._seen.items() if seen.is_over]
        done = [key for key in ended if self._seen[key].changes == self._seen[key].written]
        for key in {*done, *ended[: max(len(ended) - _MOST_ENDED, 0)]}:
            del self._seen[key]


class ObservationWriter:
    """Writes what has changed, beside the event loop."""

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
        self._complaint = ""

    async def write(self) -> None:
        """One round. What the store does not take is tried again in the next."""
        for key, document, seen, changes in self._observations.unwritten(
            self._replica, self._clock()
        ):
            try:
                await asyncio.to_thread(self._store.put, key, document)
            except WorkerError as error:
                self._complain(str(error))
                return
            self._observations.written(seen, changes)
        self._complaint = ""

    def _complain(self, error: str) -> None:
        """Once, and not every few seconds: a store that is down for an hour fills no disk."""
        if error != self._complaint:
            logger.warning("what was seen of trials cannot be written, it will be later: %s", error)
        self._complaint = error
