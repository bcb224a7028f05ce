"""What running attempts tell of themselves: how far, how fast, how well, how far others moved.

The series of a model vanish with its attempt. The number of models is bounded, because each is a
label's value; the rest is in the API.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cmcl.contract.job import Progress
from service.clock import Clock
from service.database.engine import Database
from service.database.queries.figures import Training, training
from service.observe.backlog import Kept

_KEPT_SECONDS = 5.0
_MOST_MODELS = 200


@dataclass(frozen=True)
class _Figure:
    """A figure of an attempt; `read` answers None in phases that do not have it."""

    name: str
    meaning: str
    read: Callable[[Progress], float | None]


# A count that is not planned stays at 0 in the same series: a series that came and went would hide
# from an alert that the attempt gets on.
_FIGURES = (
    _Figure("updates", "Updates of the heads done in this phase", lambda now: now.updates_done),
    _Figure("updates_planned", "Updates of this phase", lambda now: now.updates_total),
    _Figure("rows", "Rows read in this phase, over all ranks", lambda now: now.rows_done),
    _Figure("rows_planned", "Rows to read in this phase", lambda now: now.rows_total),
    _Figure("rows_per_second", "Rows that all ranks get through", lambda now: now.rows_per_second),
    _Figure("loss", "Loss of the last batch", lambda now: now.loss),
    _Figure(
        "removed_share",
        "Share of the gradient's square that protection removed",
        lambda now: now.removed_share,
    ),
    _Figure(
        "gradient_norm",
        "Norm of what protection leaves of both heads' gradient",
        lambda now: now.gradient_norm,
    ),
    _Figure("drift", "First-order estimate of earlier scores' drift", lambda now: now.drift),
    _Figure("eta_seconds", "Until the phase is over", lambda now: now.eta_seconds),
    _Figure("ranks", "Processes that share the batch", lambda now: now.ranks),
    _Figure("resumed_at", "Updates that a checkpoint spared", lambda now: now.resumed_at),
)


class TrainingCollector(Collector):
    """Progress of the attempts that run, by model."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._kept = Kept(self._read, _KEPT_SECONDS, clock)

    def describe(self) -> Iterable[Metric]:
        """Names only: registering must not need a database that answers."""
        return _families([])

    def collect(self) -> Iterable[Metric]:
        """The families, without samples where nothing runs or the database does not answer."""
        return _families(self._kept.value() or [])

    def _read(self) -> list[Training]:
        with self._database.read() as connection:
            return training(connection, _MOST_MODELS)


def _families(found: Sequence[Training]) -> list[Metric]:
    return [_phase(found), *(_family(figure, found) for figure in _FIGURES)]


def _phase(found: Sequence[Training]) -> Metric:
    family = GaugeMetricFamily(
        "cmcl_service_training_phase",
        "1 for the phase that the running attempt is in",
        labels=["model", "phase"],
    )
    for each in found:
        family.add_metric([each.model, each.progress.phase], 1)
    return family


def _family(figure: _Figure, found: Sequence[Training]) -> Metric:
    name = f"cmcl_service_training_{figure.name}"
    family = GaugeMetricFamily(name, figure.meaning, labels=["model"])
    for each in found:
        value = figure.read(each.progress)
        if value is not None:
            family.add_metric([each.model], value)
    return family
