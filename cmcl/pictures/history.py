"""Pictures of a model over its versions, of its capacity, and of the progress of a job, from what the API returns.

Parameters are structural types, as in `results.py`. A picture of what was not measured is None.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple, Protocol

from cmcl.pictures.curves import (
    CapacityCurve,
    LossCurve,
    LossPoint,
    capacity_curves,
    drift_curve,
    loss_curve,
    optimality_curve,
)
from cmcl.pictures.matrix import forgetting_matrix
from cmcl.pictures.memory import Memory, MemoryRow
from cmcl.pictures.picture import Picture
from cmcl.pictures.retention import retention_curves


class _Figures(Protocol):
    @property
    def recall(self) -> Mapping[str, float]: ...
    @property
    def quality(self) -> Mapping[str, float]: ...
    @property
    def best(self) -> Mapping[str, float]: ...


class VersionLike(Protocol):
    """An item of `GET /v1/models/{model}/versions`, with its figures by dataset."""

    @property
    def version(self) -> int: ...
    @property
    def dataset(self) -> str | None: ...
    @property
    def dataset_name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def max_drift(self) -> float | None: ...
    @property
    def by_dataset(self) -> _Figures | None: ...


class HistoryPictures(NamedTuple):
    """The pictures of a model over its versions."""

    forgetting: Picture | None
    retention: Picture | None
    drift: Picture | None
    optimality: Picture | None


def history_pictures(
    versions: Iterable[VersionLike],
    drift_bound: float | None = None,
    names: Mapping[str, str] | None = None,
) -> HistoryPictures:
    """Draw a model over versions, in any order. `drift_bound`: the largest permitted drift, if there is one.

    `names`: names of datasets by id, of those that were learned before the first of the versions.
    """
    in_order = sorted(versions, key=lambda each: each.version)
    memory = _memory(in_order, names or {})
    drift = {each.version: each.max_drift for each in in_order}
    best = {each.version: _optimality(each.by_dataset) for each in in_order}
    return HistoryPictures(
        forgetting_matrix(memory) if memory.in_order else None,
        retention_curves(memory) if memory.in_order else None,
        drift_curve(drift, drift_bound) if set(drift.values()) - {None} else None,
        optimality_curve(best) if set(best.values()) - {(None, None)} else None,
    )


def _memory(versions: Sequence[VersionLike], names: Mapping[str, str]) -> Memory:
    learned = {each.dataset: each.dataset_name for each in versions if each.dataset is not None}
    names = {**names, **learned}
    recalls = [each.by_dataset.recall if each.by_dataset else {} for each in versions]
    # Datasets in the order in which they were first measured.
    measured = list(dict.fromkeys(dataset for recall in recalls for dataset in recall))
    rows = [
        MemoryRow(
            each.version,
            each.dataset_name,
            [recall.get(dataset) for dataset in measured],
            each.kind == "unlearn",
        )
        for each, recall in zip(versions, recalls, strict=True)
    ]
    return Memory([names.get(dataset, dataset) for dataset in measured], rows)


def _optimality(figures: _Figures | None) -> tuple[float | None, float | None]:
    """Return the mean loss now and the mean attainable loss of the datasets that have both."""
    both = {} if figures is None else figures.quality.keys() & figures.best.keys()
    if figures is None or not both:
        return None, None
    in_order = sorted(both)
    return fmean(figures.quality[each] for each in in_order), fmean(
        figures.best[each] for each in in_order
    )


class _FreeShare(Protocol):
    @property
    def version(self) -> int: ...
    @property
    def free_share(self) -> float: ...


class _Room(Protocol):
    @property
    def datasets_left(self) -> int | None: ...
    @property
    def taken_per_dataset(self) -> float | None: ...
    @property
    def history(self) -> Sequence[_FreeShare]: ...


class CapacityLike(Protocol):
    """The capacity of a model: `GET /v1/models/{model}/capacity`."""

    @property
    def full_below(self) -> float: ...
    @property
    def modalities(self) -> Mapping[str, _Room]: ...


def capacity_picture(capacity: CapacityLike) -> Picture | None:
    """Draw how the heads of a model filled, and the forecast."""
    curves = [
        CapacityCurve(
            modality,
            {each.version: each.free_share for each in room.history},
            room.datasets_left,
            room.taken_per_dataset,
        )
        for modality, room in capacity.modalities.items()
    ]
    return capacity_curves(curves, full_below=capacity.full_below) if curves else None


class _ProgressPoint(Protocol):
    @property
    def updates_done(self) -> int: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def removed_share(self) -> float | None: ...


class ProgressLike(Protocol):
    """The progress of an attempt: `GET /v1/jobs/{job}/progress`."""

    @property
    def attempt(self) -> int | None: ...
    @property
    def points(self) -> Sequence[_ProgressPoint]: ...


def progress_picture(attempts: Iterable[ProgressLike]) -> Picture | None:
    """Draw the loss of attempts, oldest first, over their updates.

    Reports before and after the training have no loss, and heads that are solved from moments have none at
    all.
    """
    curves = [
        LossCurve(
            each.attempt or 0,
            [
                LossPoint(point.updates_done, point.loss, point.removed_share)
                for point in each.points
                if point.loss is not None
            ],
        )
        for each in attempts
    ]
    trained = [curve for curve in curves if curve.points]
    return loss_curve(trained) if trained else None
