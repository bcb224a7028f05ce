"""Metrics of each model's newest version (drift, free capacity) and of training.

A version never changes, so its manifest is read once. The number of models is bounded, because each is
a label value; the rest is in the API.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cmcl.contract.job import Progress
from cmcl.contract.version import VersionManifest
from service.context import Clock
from service.database.engine import Database
from service.database.queries import versions
from service.database.queries.metrics import Training, Versioned, training, versioned
from service.telemetry.backlog import ScrapeCache

_MODELS_TTL_SECONDS = 60.0
_MOST_MODELS = 200
# A manifest takes milliseconds to read; bounded so that the first scrape does not take long.
_READ_AT_ONCE = 20


_TRAINING_TTL_SECONDS = 5.0


@dataclass(frozen=True)
class _ModelMetrics:
    """Current metrics of one model."""

    head: int
    live: int | None
    drift_permitted: float | None
    drift: float | None
    optimality: float | None
    free_shares: Mapping[str, float]


@dataclass(frozen=True)
class _VersionMetrics:
    """Metrics of a version, which never change."""

    drift: float
    optimality: float | None
    free_shares: Mapping[str, float]


class ModelCollector(Collector):
    """Drift, free capacity and version numbers by model."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._known: dict[tuple[str, int], _VersionMetrics] = {}
        self._cache = ScrapeCache(self._read, _MODELS_TTL_SECONDS, clock)

    def describe(self) -> Iterable[Metric]:
        """Names only: registration must not need the database."""
        return _model_families({})

    def collect(self) -> Iterable[Metric]:
        """The families, without samples if the database does not respond."""
        return _model_families(self._cache.value() or {})

    def _read(self) -> dict[str, _ModelMetrics]:
        with self._database.read() as connection:
            found = versioned(connection, _MOST_MODELS)
        newest = {(model.name, model.head) for model in found}
        self._known = {key: known for key, known in self._known.items() if key in newest}
        for name, head in sorted(newest - self._known.keys())[:_READ_AT_ONCE]:
            self._learn(name, head)
        return {model.name: self._model_metrics(model) for model in found}

    def _learn(self, name: str, number: int) -> None:
        with self._database.read() as connection:
            version = versions.find(connection, name, number)
        if version is not None:
            self._known[name, number] = _of_version(version.manifest)

    def _model_metrics(self, model: Versioned) -> _ModelMetrics:
        known = self._known.get((model.name, model.head))
        permitted = model.gate.max_drift
        return _ModelMetrics(
            head=model.head,
            live=model.live,
            drift_permitted=model.spec.drift_bound if permitted is None else permitted,
            drift=known.drift if known else None,
            optimality=known.optimality if known else None,
            free_shares=known.free_shares if known else {},
        )


def _of_version(manifest: VersionManifest) -> _VersionMetrics:
    report = manifest.report
    return _VersionMetrics(
        drift=max((drift.since_learned for drift in report.drift.values()), default=0.0),
        optimality=min(
            (each.optimality for each in report.quality.values() if each.optimality is not None),
            default=None,
        ),
        free_shares={name: head.free_share for name, head in report.capacity.items()},
    )


def _model_families(found: Mapping[str, _ModelMetrics]) -> list[Metric]:
    newest = _model_family("version", "Number of the model's newest version", "model")
    live = _model_family("live_version", "Number of the live version", "model")
    drift = _model_family("drift", "Largest relative drift of an earlier dataset's scores", "model")
    permitted = _model_family("drift_permitted", "Largest drift that the gate permits", "model")
    optimality = _model_family(
        "optimality",
        "Least share of the best loss that heads of this width reach on an earlier dataset",
        "model",
    )
    free = _model_family("free_share", "Share of a head that may still move", "model", "modality")
    for name, figures in found.items():
        newest.add_metric([name], figures.head)
        for family, value in (
            (live, figures.live),
            (drift, figures.drift),
            (permitted, figures.drift_permitted),
            (optimality, figures.optimality),
        ):
            if value is not None:
                family.add_metric([name], value)
        for modality, share in figures.free_shares.items():
            free.add_metric([name, modality], share)
    return [newest, live, drift, permitted, optimality, free]


def _model_family(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cmcl_service_model_{name}", meaning, labels=labels)


@dataclass(frozen=True)
class _TrainingMetric:
    """A metric of an attempt; `read` returns None in phases without it."""

    name: str
    meaning: str
    read: Callable[[Progress], float | None]


# Counts stay in the same series, at 0 if not applicable: a series that disappears would hide
# progress from an alert.
_TRAINING_METRICS = (
    _TrainingMetric(
        "updates", "Updates of the heads done in this phase", lambda now: now.updates_done
    ),
    _TrainingMetric("updates_planned", "Updates of this phase", lambda now: now.updates_total),
    _TrainingMetric("rows", "Rows read in this phase, over all ranks", lambda now: now.rows_done),
    _TrainingMetric("rows_planned", "Rows to read in this phase", lambda now: now.rows_total),
    _TrainingMetric(
        "rows_per_second", "Rows per second, over all ranks", lambda now: now.rows_per_second
    ),
    _TrainingMetric("loss", "Loss of the last batch", lambda now: now.loss),
    _TrainingMetric(
        "removed_share",
        "Share of the gradient's square that protection removed",
        lambda now: now.removed_share,
    ),
    _TrainingMetric(
        "gradient_norm",
        "Norm of what protection leaves of both heads' gradient",
        lambda now: now.gradient_norm,
    ),
    _TrainingMetric(
        "drift", "First-order estimate of earlier scores' drift", lambda now: now.drift
    ),
    _TrainingMetric(
        "eta_seconds", "Estimated time until the phase ends", lambda now: now.eta_seconds
    ),
    _TrainingMetric("ranks", "Processes that share the batch", lambda now: now.ranks),
    _TrainingMetric(
        "resumed_at",
        "Updates done before the checkpoint that it resumed from",
        lambda now: now.resumed_at,
    ),
)


class TrainingCollector(Collector):
    """Progress of running attempts, by model."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._cache = ScrapeCache(self._read, _TRAINING_TTL_SECONDS, clock)

    def describe(self) -> Iterable[Metric]:
        """Names only: registration must not need the database."""
        return _training_families([])

    def collect(self) -> Iterable[Metric]:
        """The families, without samples if nothing runs or the database does not respond."""
        return _training_families(self._cache.value() or [])

    def _read(self) -> list[Training]:
        with self._database.read() as connection:
            return training(connection, _MOST_MODELS)


def _training_families(found: Sequence[Training]) -> list[Metric]:
    return [_phase(found), *(_training_family(figure, found) for figure in _TRAINING_METRICS)]


def _phase(found: Sequence[Training]) -> Metric:
    family = GaugeMetricFamily(
        "cmcl_service_training_phase",
        "1 for the current phase of the running attempt",
        labels=["model", "phase"],
    )
    for each in found:
        family.add_metric([each.model, each.progress.phase], 1)
    return family


def _training_family(figure: _TrainingMetric, found: Sequence[Training]) -> Metric:
    name = f"cmcl_service_training_{figure.name}"
    family = GaugeMetricFamily(name, figure.meaning, labels=["model"])
    for each in found:
        value = figure.read(each.progress)
        if value is not None:
            family.add_metric([each.model], value)
    return family
