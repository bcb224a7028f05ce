"""The history of a model in as many versions as a page shows, and its optimality."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from cmcl.pictures import optimality_curve
from service.api.history import VersionFiguresView, list_history
from service.context import Context
from service.database.seek import Seek
from service.page.rendering import Figure, figure
from service.principal import Principal

# Versions of one page.
MOST = 32


def distance(newest: int) -> int:
    """The distance of evenly spaced versions, of so many."""
    return max(1, -(-newest // MOST))


def spaced_versions(
    model: str, newest: int, principal: Principal, context: Context
) -> list[VersionFiguresView]:
    """Evenly spaced versions and the newest, oldest first."""
    seek = Seek[int](None, "desc", MOST)
    return list_history(model, principal, context, seek, every=distance(newest)).items[::-1]


def consecutive_versions(
    model: str, to: int, principal: Principal, context: Context
) -> list[VersionFiguresView]:
    """Versions that follow each other up to one, oldest first."""
    return list_history(model, principal, context, Seek(to + 1, "desc", MOST)).items[::-1]


def mean_losses(version: VersionFiguresView) -> tuple[float, float] | None:
    """Mean loss of the earlier datasets whose lowest loss is known, and the mean of the lowest; None: of none."""
    found = version.by_dataset
    if found is None or not found.best:
        return None
    return fmean(found.quality[name] for name in found.best), fmean(found.best.values())


def optimality_over_versions(versions: Sequence[VersionFiguresView]) -> Figure | None:
    """Mean loss and mean lowest loss by version; None where they are known of fewer than two versions."""
    known = {each.version: losses for each in versions if (losses := mean_losses(each))}
    return figure(lambda width: optimality_curve(known, width=width)) if len(known) > 1 else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; None: there is none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
