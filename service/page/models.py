"""Models: the overview, the list, and one model with its chain of versions, its gate and its history.

The overview shows what is live, being learned, held and broken, and what to do next.
"""

import asyncio
from datetime import datetime
from functools import partial

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel

from cmcl.contract.api.access import Quota
from cmcl.contract.api.datasets import DatasetSummary
from cmcl.contract.api.jobs import JobState
from cmcl.contract.api.models import Model, ModelSummary
from cmcl.contract.api.versions import Promotion, VersionFigures
from cmcl.contract.gate import Gate
from cmcl.pictures import Branch, ChainVersion, Picture, version_chain
from service.api.datasets import list_datasets
from service.api.dependencies import ContextDep, LoopsDep, ModelPath, Reader
from service.api.history import list_history
from service.api.models import list_models, read_gate, read_model
from service.api.operations import check_health
from service.api.pagination import CursorQuery, Page, get_number_seek, get_text_seek
from service.api.quotas import read_quotas
from service.api.summaries import list_summaries, read_summary
from service.api.versions import list_promotions
from service.context import Context
from service.core.principal import Principal
from service.database.engine import Seek
from service.page.rendering import PREFIX, WHOLE, pages_of

router = APIRouter(prefix=PREFIX)

_LISTED = 50
_VERSIONS = 25
_DRAWN = 12
_BRANCHES = 50
_DATASETS = 8
_PROMOTIONS = 8
# Models that are counted; an owner has 500 by default.
_MOST_MODELS = 1000
_AT_ONCE = 200
_MOST_SHOWN = 8
_BROKEN = (JobState.FAILED, JobState.REJECTED)


class Overview(BaseModel):
    """What the overview shows: models by what they need, the one that changed last first."""

    models: list[ModelSummary]
    are_all: bool
    live: int
    learning: list[ModelSummary]
    held: list[ModelSummary]
    broken: list[ModelSummary]
    waiting_jobs: int


@router.get("/")
async def overview_page(
    request: Request, principal: Reader, context: ContextDep, loops: LoopsDep
) -> Response:
    """What a person looks at first."""
    health, endpoint = await asyncio.gather(
        check_health(context, loops, request.app.state.probes),
        request.app.state.endpoint.checks(),
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
    found = _read_overview(principal, context)
    values = {name: getattr(found, name) for name in Overview.model_fields}
    checks = {**control_plane, **endpoint}
    return pages_of(request).render(
        request,
        "overview.html",
        most_shown=_MOST_SHOWN,
        checks=checks,
        problems={name: result for name, result in checks.items() if result != "ok"},
        learning_is_affected=any(result != "ok" for result in control_plane.values()),
        queries_are_affected=any(result != "ok" for result in endpoint.values()),
        # A function: only the part of the page that shows them has them counted.
        quotas=partial(_quotas, principal, context),
        **values,
    )


def _quotas(principal: Principal, context: Context) -> dict[str, Quota]:
    """The quotas of the owner that are limited; none of the operator, who is not limited."""
    if principal.owner is None:
        return {}
    found = read_quotas(principal, context, None).quotas
    return {name: quota for name, quota in found.items() if quota.limit is not None}


def _read_overview(principal: Principal, context: Context) -> Overview:
    models: list[ModelSummary] = []
    after: str | None = None
    while True:
        found = list_summaries(principal, context, Seek(after, "asc", _AT_ONCE))
        models += found.items
        if found.next_cursor is None or len(models) >= _MOST_MODELS:
            break
        after = models[-1].name
    models.sort(key=_changed_at, reverse=True)
    # The newest job comes last, so that the others stay where they are when it starts.
    learning = sorted(
        (model.current.created_at, model.name, model)
        for model in models
        if model.current and model.current.state != JobState.HELD
    )
    return Overview(
        models=models,
        are_all=found.next_cursor is None,
        live=sum(model.live_version is not None for model in models),
        learning=[model for *_, model in learning],
        held=[model for model in models if model.current and model.current.state == JobState.HELD],
        broken=[
            model for model in models if model.last_ended and model.last_ended.state in _BROKEN
        ],
        waiting_jobs=sum(model.jobs.waiting for model in models),
    )


def _changed_at(model: ModelSummary) -> datetime:
    """When something last happened to it."""
    moments = [model.created_at]
    moments += [model.newest.created_at] if model.newest else []
    moments += [model.current.state_changed_at] if model.current else []
    moments += [model.last_ended.state_changed_at] if model.last_ended else []
    return max(moments)


class ModelOverview(BaseModel):
    """What the page of a model shows."""

    model: Model
    summary: ModelSummary
    gate: Gate
    gate_revision: str
    versions: Page[VersionFigures]
    newest: list[VersionFigures]
    branches: list[Model]
    datasets: list[DatasetSummary]
    promotions: list[Promotion]


@router.get("/models")
def models_page(
    request: Request, principal: Reader, context: ContextDep, cursor: CursorQuery = None
) -> Response:
    """Models by name."""
    found = list_summaries(principal, context, get_text_seek(cursor, "asc", _LISTED))
    return pages_of(request).render(
        request,
        "models.html",
        models=found.items,
        next_cursor=found.next_cursor,
        is_first=cursor is None,
    )


@router.get("/models/{model}")
def model_page(
    request: Request,
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    cursor: CursorQuery = None,
) -> Response:
    """One model."""
    found = _read(model, principal, context, cursor)
    values = {name: getattr(found, name) for name in ModelOverview.model_fields}
    return pages_of(request).render(
        request, "model.html", chain=_chain(found), is_first=cursor is None, **values
    )


def _read(model: str, principal: Principal, context: Context, cursor: str | None) -> ModelOverview:
    response = Response()
    seek = get_number_seek(cursor, "desc", _VERSIONS)
    versions = list_history(model, principal, context, seek, by_dataset=False)
    newest = versions
    if cursor is not None:
        first = Seek[int](None, "desc", _DRAWN)
        newest = list_history(model, principal, context, first, by_dataset=False)
    return ModelOverview(
        model=read_model(model, principal, context),
        summary=read_summary(model, principal, context),
        gate=read_gate(model, principal, context, response),
        gate_revision=response.headers["etag"].strip('"'),
        versions=versions,
        newest=newest.items[:_DRAWN],
        branches=list_models(principal, context, Seek(None, "asc", _BRANCHES), model).items,
        datasets=list_datasets(
            principal, context, Seek(None, "desc", _DATASETS), model=model
        ).items,
        promotions=list_promotions(
            model, principal, context, Seek(None, "desc", _PROMOTIONS)
        ).items,
    )


def _chain(found: ModelOverview) -> Picture:
    """The newest versions, what each learned, and where branches start."""
    summary = found.summary

    def state(version: VersionFigures) -> str:
        if version.version == summary.live_version:
            return "live"
        return "retired" if version.retired_at else ""

    versions = [
        ChainVersion(each.version, each.dataset_name, state(each), each.kind == "unlearn")
        for each in reversed(found.newest)
    ]
    origins = [(each.name, each.branched_from) for each in found.branches]
    branches = [Branch(name, origin.version) for name, origin in origins if origin]
    return version_chain(versions, branches, width=WHOLE)
