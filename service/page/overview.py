"""The overview: what is live, being learned, held and broken, and what to do next."""

from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel

from service.api.dependencies import ContextDep, LoopsDep, Reader
from service.api.keys import QuotaView, read_quotas
from service.api.operations import Health, check_health
from service.api.summaries import ModelSummary, list_summaries
from service.context import Context
from service.database.seek import Seek
from service.page.rendering import PREFIX, pages_of
from service.principal import Principal
from service.states import JobState

router = APIRouter(prefix=PREFIX)

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
    health = await check_health(context, loops, request.app.state.probes)
    return await run_in_threadpool(_render, request, principal, context, health)


def _render(request: Request, principal: Principal, context: Context, health: Health) -> Response:
    found = _read(principal, context)
    values = {name: getattr(found, name) for name in Overview.model_fields}
    problems = {name: result for name, result in health.checks.items() if result != "ok"}
    return pages_of(request).render(
        request,
        "overview.html",
        most_shown=_MOST_SHOWN,
        checks=health.checks,
        problems=problems,
        quotas=_limits(principal, context),
        **values,
    )


def _limits(principal: Principal, context: Context) -> dict[str, QuotaView]:
    """The quotas of the owner that are limited; none of the operator, who is not limited."""
    if principal.owner is None:
        return {}
    found = read_quotas(principal, context, None).quotas
    return {name: quota for name, quota in found.items() if quota.limit is not None}


def _read(principal: Principal, context: Context) -> Overview:
    models: list[ModelSummary] = []
    after: str | None = None
    while True:
        found = list_summaries(principal, context, Seek(after, "asc", _AT_ONCE))
        models += found.items
        if found.next_cursor is None or len(models) >= _MOST_MODELS:
            break
        after = models[-1].name
    models.sort(key=_changed_at, reverse=True)
    return Overview(
        models=models,
        are_all=found.next_cursor is None,
        live=sum(model.live_version is not None for model in models),
        learning=[
            model for model in models if model.current and model.current.state != JobState.HELD
        ],
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
