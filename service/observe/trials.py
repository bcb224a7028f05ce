"""Versions on trial: who sees them, and how they compare with those that answer, as the replicas tell.

The series of a model vanish with its trial. The number of models is bounded, because each is a label's
value; the rest is in the API.
"""

from collections.abc import Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.clock import Clock
from service.database.engine import Database
from service.database.queries import trials
from service.database.rows import TrialRecord
from service.observe.backlog import Kept

_KEPT_SECONDS = 5.0
_MOST_MODELS = 200


class TrialCollector(Collector):
    """The trials that run, by model."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._kept = Kept(self._read, _KEPT_SECONDS, clock)

    def describe(self) -> Iterable[Metric]:
        """Names only: registering must not need a database that answers."""
        return _families([])

    def collect(self) -> Iterable[Metric]:
        """The families, without samples where no version is on trial."""
        return _families(self._kept.value() or [])

    def _read(self) -> list[TrialRecord]:
        with self._database.read() as connection:
            return trials.all_running(connection, _MOST_MODELS)


def _families(found: Sequence[TrialRecord]) -> list[Metric]:
    return [*_terms(found), _requests(found), *_agreement(found)]


def _terms(found: Sequence[TrialRecord]) -> list[Metric]:
    version = _family("version", "Number of the version on trial", "model")
    share = _family("share", "Share of the callers that it answers", "model")
    shadow = _family("shadow", "Share of the live version's requests that it scores", "model")
    for trial in found:
        version.add_metric([trial.model], trial.version)
        share.add_metric([trial.model], trial.plan.share)
        shadow.add_metric([trial.model], trial.plan.shadow)
    return [version, share, shadow]


def _requests(found: Sequence[TrialRecord]) -> Metric:
    family = _family("requests", "Requests that it was judged by so far", "model", "kind")
    for trial in found:
        for kind in ("answered", "shadowed", "failed"):
            family.add_metric([trial.model, kind], getattr(trial.observed, kind))
    return family


def _agreement(found: Sequence[TrialRecord]) -> list[Metric]:
    cosine = _family("cosine", "Mean cosine of its scores and the live version's", "model", "pair")
    overlap = _family("overlap", "Mean share of the ten best in common", "model", "pair")
    for trial in found:
        for pair, told in trial.observed.pairs.items():
            for family, mean in ((cosine, told.mean_cosine), (overlap, told.mean_overlap)):
                if mean is not None:
                    family.add_metric([trial.model, pair], mean)
    return [cosine, overlap]


def _family(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cmcl_service_trial_{name}", meaning, labels=labels)
