"""The last day of each model: publications, failures and rollbacks on one axis, and its mean recall by version."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from cmcl.contract.api.events import EventKind
from cmcl.contract.api.models import ModelSummary
from cmcl.pictures import Mark, Picture, sparkline, strip
from service.api.events import read_page
from service.context import Context
from service.core.principal import Principal
from service.database.engine import Seek
from service.database.queries import versions
from service.database.queries.events import EventFilter
from service.page.explanations import EVENT_LABELS
from service.page.rendering import WHOLE, Figure, figure

# Events of the strip, and versions of a sparkline.
_EVENTS, _VERSIONS = 200, 12
_HOURS = 24
_COLOURS: Mapping[str, str] = {
    EventKind.VERSION_PUBLISHED: "good",
    EventKind.VERSION_PROMOTED: "good",
    EventKind.VERSION_ROLLED_BACK: "warn",
    EventKind.JOB_HELD: "warn",
    EventKind.JOB_REJECTED: "bad",
    EventKind.JOB_FAILED: "bad",
}


def last_day(
    models: Sequence[ModelSummary], principal: Principal, context: Context
) -> tuple[Figure | None, dict[str, Picture]]:
    """The strip of these models, and the sparkline of each by name."""
    names = [model.name for model in models]
    return _day(names, principal, context), _sparklines(names, context)


def _day(names: Sequence[str], principal: Principal, context: Context) -> Figure | None:
    """What happened to these models in the last day; None if nothing did."""
    now = context.clock()
    wanted = EventFilter(owner=principal.owner, kinds=frozenset(_COLOURS))
    found = read_page(context, wanted, Seek(None, "desc", _EVENTS)).items
    lanes: dict[str, list[Mark]] = {name: [] for name in names}
    for event in found:
        if event.model in lanes and now - event.created_at < timedelta(hours=_HOURS):
            what = f"v{event.version}" if event.version else str(event.details.get("reason") or "")
            says = f"{_time(event.created_at)} {EVENT_LABELS[event.kind]} {what}"
            at = event.created_at.timestamp()
            lanes[event.model].append(Mark(at, _COLOURS[event.kind], says.strip()))
    lanes = {name: marks for name, marks in lanes.items() if marks}
    if not lanes:
        return None
    places = [now - timedelta(hours=hours) for hours in range(_HOURS, -1, -6)]
    ticks = [(place.timestamp(), _time(place)) for place in places]
    texts = (
        "The last day",
        "Discs: published or promoted. Rings: held, rolled back, rejected or failed. Times are UTC.",
    )
    return figure(lambda width: strip(texts, lanes, ticks, width=width), WHOLE)


def _sparklines(names: Sequence[str], context: Context) -> dict[str, Picture]:
    """Mean R@1 of the newest versions of each model that has measured it twice, by name."""
    with context.database.read() as connection:
        recalls = versions.recent_recalls(connection, names, _VERSIONS)
    drawn = {}
    for name in names:
        numbers, values = zip(*recalls.get(name, [(0, None)]), strict=True)
        if len([value for value in values if value is not None]) > 1:
            texts = (f"Mean R@1 of {name}", f"Versions {numbers[0]} to {numbers[-1]}.")
            drawn[name] = sparkline(texts, values)
    return drawn


def _time(at: datetime) -> str:
    return f"{at:%H:%M}"
