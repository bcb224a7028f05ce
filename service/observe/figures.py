"""The figures of each model's newest version: how far the others moved, and how much room is left.

A version never changes, so its manifest is read once. The number of models is bounded, because each
is a label's value; the rest is in the API.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cmcl.contract.version import VersionManifest
from service.clock import Clock
from service.database.engine import Database
from service.database.queries import versions
from service.database.queries.figures import Versioned, versioned
from service.observe.backlog import Kept

_KEPT_SECONDS = 60.0
_MOST_MODELS = 200
# A manifest takes milliseconds to read: after a start with many models, a scrape must not wait long.
_READ_AT_ONCE = 20


@dataclass(frozen=True)
class _Figures:
    """Of one model now."""

    head: int
    live: int | None
    drift_permitted: float | None
    drift: float | None
    free_shares: Mapping[str, float]


@dataclass(frozen=True)
class _OfVersion:
    """Of a version, for ever."""

    drift: float
    free_shares: Mapping[str, float]


class FiguresCollector(Collector):
    """Drift and free share by model, and which version it is at."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._known: dict[tuple[str, int], _OfVersion] = {}
        self._kept = Kept(self._read, _KEPT_SECONDS, clock)

    def describe(self) -> Iterable[Metric]:
        """Names only: registering must not need a database that answers."""
        return _families({})

    def collect(self) -> Iterable[Metric]:
        """The families, without samples where the database does not answer."""
        return _families(self._kept.value() or {})

    def _read(self) -> dict[str, _Figures]:
        with self._database.read() as connection:
            found = versioned(connection, _MOST_MODELS)
        newest = {(model.name, model.head) for model in found}
        self._known = {key: known for key, known in self._known.items() if key in newest}
        for name, head in sorted(newest - self._known.keys())[:_READ_AT_ONCE]:
            self._learn(name, head)
        return {model.name: self._figures(model) for model in found}

    def _learn(self, name: str, number: int) -> None:
        with self._database.read() as connection:
            version = versions.find(connection, name, number)
        if version is not None:
            self._known[name, number] = _of_version(version.manifest)

    def _figures(self, model: Versioned) -> _Figures:
        known = self._known.get((model.name, model.head))
        permitted = model.policy.max_drift
        return _Figures(
            head=model.head,
            live=model.live,
            drift_permitted=model.spec.drift_bound if permitted is None else permitted,
            drift=known.drift if known else None,
            free_shares=known.free_shares if known else {},
        )


def _of_version(manifest: VersionManifest) -> _OfVersion:
    report = manifest.report
    return _OfVersion(
        drift=max((drift.since_learned for drift in report.drift.values()), default=0.0),
        free_shares={name: head.free_share for name, head in report.capacity.items()},
    )


def _families(found: Mapping[str, _Figures]) -> list[Metric]:
    newest = _family("version", "Number of the model's newest version", "model")
    live = _family("live_version", "Number of the version that answers", "model")
    drift = _family("drift", "Largest relative drift of an earlier dataset's scores", "model")
    permitted = _family("drift_permitted", "Largest drift that the policy permits", "model")
    free = _family("free_share", "Share of a head that may still move", "model", "modality")
    for name, figures in found.items():
        newest.add_metric([name], figures.head)
        for family, value in (
            (live, figures.live),
            (drift, figures.drift),
            (permitted, figures.drift_permitted),
        ):
            if value is not None:
                family.add_metric([name], value)
        for modality, share in figures.free_shares.items():
            free.add_metric([name, modality], share)
    return [newest, live, drift, permitted, free]


def _family(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cmcl_service_model_{name}", meaning, labels=labels)
