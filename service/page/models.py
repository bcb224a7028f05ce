"""Models: the overview, the list, and one model with its versions, its modalities and their pairs, its gate and its history.

The overview shows what is live, being learned, held and broken, and what to do next.
"""

import asyncio
from datetime import datetime
from functools import partial

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from cmcl.contract.api.jobs import JobState
from cmcl.contract.api.models import ModelSummary, QueryDrift
from cmcl.contract.errors import StorageUnavailable
from cmcl.pictures import Line, Picture, lines, modality_graph, modality_pairs
from service.api.datasets import list_datasets
from service.api.dependencies import ContextDep, LoopsDep, ModelPath, Reader
from service.api.models import (
    list_models,
    list_summaries,
    read_gate,
    read_model,
    read_query_drift,
    read_summary,
)
from service.api.operations import check_health
from service.api.versions import list_versions, read_version
from service.context import Context
from service.core.principal import Principal
from service.database.engine import Seek
from service.page.day import last_day
from service.page.formats import plural
from service.page.lists import MODELS, VERSIONS, WantedQuery, find
from service.page.rendering import PREFIX, TWO_THIRDS, WHOLE, figure, pages_of
from service.page.start import has_sample

router = APIRouter(prefix=PREFIX)

_BRANCHES = 50
_DATASETS = 8
# Models that are counted; an owner has 500 by default.
_MOST_MODELS = 1000
_AT_ONCE = 200
_MOST_SHOWN = 8
_BROKEN = (JobState.FAILED, JobState.REJECTED)


@router.get("/")
async def overview_page(
    request: Request, principal: Reader, context: ContextDep, loops: LoopsDep
) -> Response:
    """What a person looks at first."""
    health, endpoint = await asyncio.gather(
        check_health(context, loops, request.app.state.probes), request.app.state.endpoint.checks()
    )
    return await run_in_threadpool(
        _render_overview, request, principal, context, health.checks, endpoint
    )


def _render_overview(
    request: Request,
    principal: Principal,
    context: Context,
    control_plane: dict[str, str],
    endpoint: dict[str, str],
) -> Response:
    checks = {**control_plane, **endpoint}
    return pages_of(request).render(
        request,
        "overview.html",
        most_shown=_MOST_SHOWN,
        has_sample=has_sample(context),
        checks=checks,
        problems={name: result for name, result in checks.items() if result != "ok"},
        learning_is_affected=any(result != "ok" for result in control_plane.values()),
        queries_are_affected=any(result != "ok" for result in endpoint.values()),
        **_read_overview(principal, context),
    )


def _read_overview(principal: Principal, context: Context) -> dict[str, object]:
    """Models by what they need, the one that changed last first."""
    models: list[ModelSummary] = []
    after: str | None = None
    while True:
        found = list_summaries(principal, context, Seek(after, "asc", _AT_ONCE))
        models += found.items
        if found.next_cursor is None or len(models) >= _MOST_MODELS:
            break
        after = models[-1].name
    models.sort(key=_changed_at, reverse=True)
    # A function: only the part of the page that shows it has it drawn.
    day = partial(last_day, models[:_MOST_SHOWN], principal, context)
    # The newest job comes last, so that the others stay where they are when it starts.
    learning = sorted(
        (model.current.created_at, model.name, model)
        for model in models
        if model.current and model.current.state != JobState.HELD
    )
    return {
        "models": models,
        "last_day": day,
        "are_all": found.next_cursor is None,
        "live": sum(model.live_version is not None for model in models),
        "learning": [model for *_, model in learning],
        "held": [each for each in models if each.current and each.current.state == JobState.HELD],
        "broken": [each for each in models if each.last_ended and each.last_ended.state in _BROKEN],
        "waiting_jobs": sum(model.jobs.waiting for model in models),
    }


def _changed_at(model: ModelSummary) -> datetime:
    """When something last happened to it."""
    moments = [model.created_at]
    moments += [model.newest.created_at] if model.newest else []
    moments += [model.current.state_changed_at] if model.current else []
    moments += [model.last_ended.state_changed_at] if model.last_ended else []
    return max(moments)


@router.get("/models")
def models_page(
    request: Request, principal: Reader, context: ContextDep, wanted: WantedQuery
) -> Response:
    """Models by name."""
    found = find(context, MODELS, {"owner": principal.owner}, wanted)
    listed = list_summaries(principal, context, found.seek).items
    return pages_of(request).render(request, "models.html", models=listed, found=found)


@router.get("/models/{model}")
def model_page(
    request: Request,
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    wanted: WantedQuery,
) -> Response:
    """One model."""
    summary, spec = read_summary(model, principal, context), read_model(model, principal, context)
    found = find(context, VERSIONS, {"model": model}, wanted)
    graph = None
    if summary.newest:
        version = read_version(model, summary.newest.version, principal, context, matrix=False)
        pairs = modality_pairs(version.lineage, version.report.evaluation, version.evaluation_only)
        names = sorted(spec.modalities)
        graph = figure(lambda width: modality_graph(pairs, names, width=width), TWO_THIRDS)
    try:
        drift = read_query_drift(model, principal, context)
    except StorageUnavailable:
        # Everything else on the page is in the database.
        drift = QueryDrift(drifting=[], windows={})
    branches = list_models(principal, context, Seek(None, "asc", _BRANCHES), model).items
    datasets = list_datasets(principal, context, Seek(None, "desc", _DATASETS), model=model)
    return pages_of(request).render(
        request,
        "model.html",
        model=spec,
        summary=summary,
        graph=graph,
        drift=drift,
        drift_picture=figure(partial(_drift_picture, drift), WHOLE) if drift.windows else None,
        gate=read_gate(model, principal, context, Response()),
        found=found,
        versions=list_versions(model, principal, context, found.seek).items,
        newest=list_versions(model, principal, context, Seek(None, "desc", 2)).items,
        branches=branches,
        datasets=datasets.items,
    )


def _drift_picture(drift: QueryDrift, width: float) -> Picture:
    """The level of each modality over the last windows, and the band of what was learned."""
    newest = max(windows[-1].at for windows in drift.windows.values())
    drawn, above = [], []
    for place, (name, windows) in enumerate(sorted(drift.windows.items())):
        points = [((each.at - newest).total_seconds() / 60, each.level) for each in windows]
        drawn.append(Line(name, points, f"{windows[-1].level:.2f}", place))
        if over := sum(each.level > 1 for each in windows):
            above.append(f"{name} in {over} of {plural(len(windows), 'window')}")
    words = (
        "Distance of the mean of queries from the nearest mixture of datasets. "
        "Queries of these datasets lie within the band; above it: "
    )
    texts = ("Drift of queries", f"{words}{', '.join(above) or 'no window'}.")
    bound = (1.0, "drift")
    return lines(texts, drawn, ("minutes", "level"), bound, reaches=(0.0, 1.2), width=width)
