"""The room that a model has left: free shares with a forecast or, where heads are solved from moments, rank and optimality."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cmcl.contract.api.models import Model
from cmcl.contract.api.versions import ModalityCapacity, ModelCapacity, Version, VersionFigures
from cmcl.contract.version import Solution
from cmcl.pictures import CapacityCurve, Optimality, capacity_curves, optimality_bars
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.history import read_capacity
from service.api.models import read_model
from service.api.summaries import read_summary
from service.api.versions import read_version
from service.context import Context
from service.core.principal import Principal
from service.page.memory import mean_losses, optimality_over_versions, spaced_versions
from service.page.rendering import PREFIX, WHOLE, Figure, figure, pages_of

router = APIRouter(prefix=PREFIX)

# How many more datasets the forecast is made for.
AHEAD = (1, 2, 3, 5, 10)
_NEWEST = 200
# Modalities of which a sentence says whether three more datasets fit; the table has all.
_SAID = 12


@dataclass(frozen=True)
class Room:
    """The free share of a head now, and after more datasets of its modality; None: no forecast."""

    modality: str
    found: ModalityCapacity
    after: Mapping[int, float | None]
    full_below: float

    @property
    def is_full(self) -> bool:
        """Whether the next dataset is learned badly."""
        return self.found.now.free_share < self.full_below


@dataclass(frozen=True)
class Solved:
    """What limits a model whose heads are solved from moments."""

    solution: Solution | None
    gap: float | None
    over_versions: Figure | None
    by_dataset: Figure | None


@router.get("/models/{model}/capacity")
def capacity_page(
    request: Request, model: ModelPath, principal: Reader, context: ContextDep
) -> Response:
    """How many more datasets a model can learn."""
    found = read_capacity(model, principal, context, limit=_NEWEST)
    spec = read_model(model, principal, context)
    rooms = [_room(modality, each, found) for modality, each in found.modalities.items()]
    return pages_of(request).render(
        request,
        "capacity.html",
        capacity=found,
        model=read_summary(model, principal, context),
        width=spec.width,
        rooms=sorted(rooms, key=lambda room: room.found.now.free_share),
        ahead=AHEAD,
        newest=_NEWEST,
        most_said=_SAID,
        curves=_curves(found) if rooms else None,
        solved=None if rooms or not found.version else _solved(found, principal, context),
        wider=_wider(spec),
    )


def _wider(model: Model) -> str:
    """Options of the command line for a model of twice the width with the same modalities."""
    modalities = [
        f"--modality {name}={f'@{each.encoder}' if each.encoder else each.width}"
        for name, each in model.modalities.items()
    ]
    return " ".join((f"--width {2 * model.width}", *modalities))


def _room(modality: str, found: ModalityCapacity, capacity: ModelCapacity) -> Room:
    taken, now = found.taken_per_dataset, found.now.free_share
    after = {more: None if taken is None else now * (1 - taken) ** more for more in AHEAD}
    return Room(modality, found, after, capacity.full_below)


def _curves(capacity: ModelCapacity) -> Figure:
    curves = [
        CapacityCurve(
            modality,
            {point.version: point.free_share for point in each.history},
            each.datasets_left,
            each.taken_per_dataset,
        )
        for modality, each in capacity.modalities.items()
    ]
    return figure(
        lambda width: capacity_curves(curves, full_below=capacity.full_below, width=width), WHOLE
    )


def _solved(capacity: ModelCapacity, principal: Principal, context: Context) -> Solved:
    newest = capacity.version or 0
    version = read_version(capacity.model, newest, principal, context, matrix=False)
    versions = spaced_versions(capacity.model, newest, principal, context)
    losses = mean_losses(versions[-1])
    return Solved(
        solution=version.manifest.report.solution,
        gap=losses[0] - losses[1] if losses else None,
        over_versions=optimality_over_versions(versions),
        by_dataset=_by_dataset(version, versions[-1]),
    )


def _by_dataset(version: Version, figures: VersionFigures) -> Figure | None:
    found = figures.by_dataset
    if found is None or not found.best:
        return None
    names = {line.dataset: line.name for line in version.lineage}
    rows = [
        Optimality(names.get(dataset, dataset), found.quality.get(dataset), best)
        for dataset, best in found.best.items()
    ]
    return figure(lambda width: optimality_bars(rows, width=width))
