"""Models: the list, and one model with its chain of versions, its policy and its history."""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from cmcl.contract.policy import GatePolicy
from cmcl.pictures import Branch, ChainVersion, Picture, version_chain
from service.api.datasets import DatasetSummary, list_datasets
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.history import VersionFiguresView, list_history
from service.api.models import ModelView, list_models, read_model, read_policy
from service.api.pagination import CursorQuery, Page, get_number_seek, get_text_seek
from service.api.summaries import ModelSummary, list_summaries, read_summary
from service.api.versions import PromotionView, list_promotions
from service.context import Context
from service.database.seek import Seek
from service.page.rendering import PREFIX, pages_of
from service.principal import Principal

router = APIRouter(prefix=PREFIX)

_LISTED = 50
_VERSIONS = 25
_DRAWN = 12
_BRANCHES = 50
_DATASETS = 8
_PROMOTIONS = 8


class ModelOverview(BaseModel):
    """What the page of a model shows."""

    model: ModelView
    summary: ModelSummary
    policy: GatePolicy
    policy_revision: str
    versions: Page[VersionFiguresView]
    newest: list[VersionFiguresView]
    branches: list[ModelView]
    datasets: list[DatasetSummary]
    promotions: list[PromotionView]


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
        policy=read_policy(model, principal, context, response),
        policy_revision=response.headers["etag"].strip('"'),
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

    def state(version: VersionFiguresView) -> str:
        if version.version == summary.live_version:
            return "live"
        if version.version == summary.canary:
            return "canary"
        return "retired" if version.retired_at else ""

    versions = [
        ChainVersion(each.version, each.dataset_name, state(each))
        for each in reversed(found.newest)
    ]
    origins = [(each.name, each.branched_from) for each in found.branches]
    branches = [Branch(name, origin.version) for name, origin in origins if origin]
    return version_chain(versions, branches, width=1080)
