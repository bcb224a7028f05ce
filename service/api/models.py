"""Models and the version that answers for them."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from service.api.answers import answer, record
from service.api.dependencies import (
    ContextDep,
    Limit,
    ModelPath,
    NumberCursor,
    RequestKeyDep,
    TextCursor,
    VersionPath,
    encode_cursor,
)
from service.api.schemas import (
    LiveChoice,
    LiveView,
    ModelView,
    NewModel,
    Page,
    PromotionView,
    VersionSummary,
    VersionView,
)
from service.control.intake import create_model, get_model
from service.control.promote import choose
from service.database import models, versions
from service.database.rows import AnswerRecord
from service.errors import NotFound

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.post("", status_code=201, response_model=ModelView)
def post_model(body: NewModel, context: ContextDep, key: RequestKeyDep) -> JSONResponse:
    """Create a model. The same name with the same specification answers 200 and the same model."""

    def effect(connection: Connection) -> AnswerRecord:
        created = create_model(connection, body.name, body.spec, context.clock())
        status = 201 if created.is_new else 200
        return record(key, status, ModelView.of(created.model), f"/v1/models/{body.name}")

    return answer(context, key, effect)


@router.get("")
def list_models(context: ContextDep, cursor: TextCursor, limit: Limit = 50) -> Page[ModelView]:
    """All models, by name."""
    with context.database.read() as connection:
        found = models.page(connection, cursor, limit + 1)
    following = encode_cursor(found[limit - 1].name) if len(found) > limit else None
    views = [ModelView.of(model) for model in found[:limit]]
    return Page(items=views, next_cursor=following)


@router.get("/{model}")
def read_model(model: ModelPath, context: ContextDep) -> ModelView:
    """One model."""
    with context.database.read() as connection:
        return ModelView.of(get_model(connection, model))


@router.get("/{model}/versions")
def list_versions(
    model: ModelPath, context: ContextDep, cursor: NumberCursor, limit: Limit = 50
) -> Page[VersionSummary]:
    """Versions of a model, the first one first."""
    with context.database.read() as connection:
        get_model(connection, model)
        found = versions.page(connection, model, cursor, limit + 1)
    following = encode_cursor(found[limit - 1].number) if len(found) > limit else None
    views = [VersionSummary.of(version) for version in found[:limit]]
    return Page(items=views, next_cursor=following)


@router.get("/{model}/versions/{version}")
def read_version(model: ModelPath, version: VersionPath, context: ContextDep) -> VersionView:
    """One version with its manifest: files, ledger, certificate, evaluation."""
    with context.database.read() as connection:
        get_model(connection, model)
        found = versions.find(connection, model, version)
    if found is None:
        raise NotFound(f"model {model!r} has no version {version}")
    return VersionView.of(found)


@router.get("/{model}/live")
def read_live(model: ModelPath, context: ContextDep) -> LiveView:
    """The version that answers."""
    with context.database.read() as connection:
        found = get_model(connection, model)
    if found.live_version is None:
        raise NotFound(f"model {model!r} has no version yet, so none answers")
    return LiveView(version=found.live_version, generation=found.live_generation)


@router.put("/{model}/live")
def put_live(model: ModelPath, body: LiveChoice, context: ContextDep) -> LiveView:
    """Promote a version, or roll back to one. It answers once the replicas have followed."""
    reason = body.reason or "chosen by a user"
    with context.database.write() as connection:
        pointer = choose(connection, model, body.version, reason, context.clock())
    return LiveView(version=pointer.version, generation=pointer.generation)


@router.get("/{model}/promotions")
def list_promotions(
    model: ModelPath, context: ContextDep, cursor: NumberCursor, limit: Limit = 50
) -> Page[PromotionView]:
    """Each change of the version that answers, the first one first."""
    with context.database.read() as connection:
        get_model(connection, model)
        found = versions.promotion_page(connection, model, cursor, limit + 1)
    following = encode_cursor(found[limit - 1].generation) if len(found) > limit else None
    views = [PromotionView.of(promotion) for promotion in found[:limit]]
    return Page(items=views, next_cursor=following)
