"""Models: made, branched, deleted, and what a candidate must show."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from cmcl.contract.policy import GatePolicy
from service.api.dependencies import (
    Admin,
    ContextDep,
    Limit,
    ModelPath,
    Reader,
    RequestKeyDep,
    SeenRevision,
    TextCursor,
    Trainer,
    Writer,
    encode_cursor,
    etag,
)
from service.api.idempotency import answer, record
from service.api.schemas import ModelView, NewBranch, NewModel, Page
from service.database.queries import models
from service.database.rows import AnswerRecord, BranchPoint
from service.lookup import get_model
from service.registry import models as registry
from service.registry.models import Limits, branch, check_method, create_model, set_policy
from service.stale_database import check_may_change, check_not_lost

router = APIRouter(prefix="/v1/models", tags=["models"])


def _limits(context: ContextDep) -> Limits:
    settings = context.settings
    return Limits(settings.models_per_owner, settings.heads_bytes_max)


@router.post(
    "",
    status_code=201,
    response_model=ModelView,
    responses={200: {"model": ModelView, "description": "It was there already"}},
)
def post_model(
    body: NewModel, principal: Writer, context: ContextDep, key: RequestKeyDep
) -> JSONResponse:
    """Create a model. The same name with the same specification answers 200 and the same model."""

    def effect(connection: Connection) -> AnswerRecord:
        limits, now = _limits(context), context.clock()
        created = create_model(connection, body.name, body.spec, principal, now, limits)
        status = 201 if created.is_new else 200
        return record(key, status, ModelView.of(created.model), f"/v1/models/{body.name}")

    check_not_lost(context)
    check_method(body.spec.method)
    return answer(context, key, effect)


@router.get("")
def list_models(
    principal: Reader, context: ContextDep, cursor: TextCursor, limit: Limit = 50
) -> Page[ModelView]:
    """All models, by name."""
    with context.database.read() as connection:
        found = models.page(connection, principal.owner, cursor, limit + 1)
    following = encode_cursor(found[limit - 1].name) if len(found) > limit else None
    views = [ModelView.of(model) for model in found[:limit]]
    return Page(items=views, next_cursor=following)


@router.get("/{model}")
def read_model(model: ModelPath, principal: Reader, context: ContextDep) -> ModelView:
    """One model."""
    with context.database.read() as connection:
        return ModelView.of(get_model(connection, model, principal))


@router.delete("/{model}", status_code=204)
def delete_model(model: ModelPath, principal: Admin, context: ContextDep) -> None:
    """Remove a model with all its versions. 409 while a job of it has not ended.

    Its name is not given again; its files are removed some time later.
    """
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        registry.delete_model(connection, model, principal, context.clock())


@router.post("/{model}/branch", status_code=201, response_model=ModelView)
def post_branch(
    model: ModelPath,
    body: NewBranch,
    principal: Writer,
    context: ContextDep,
    key: RequestKeyDep,
) -> JSONResponse:
    """Make a new model that has the versions of this one up to `version`, and goes its own way.

    It answers queries at once, and takes no room: the files of these versions are shared.
    """

    def effect(connection: Connection) -> AnswerRecord:
        point = BranchPoint(model, body.version)
        limits, now = _limits(context), context.clock()
        made = branch(connection, body.name, point, principal, now, limits)
        return record(key, 201, ModelView.of(made), f"/v1/models/{body.name}")

    return answer(context, key, effect)


@router.get("/{model}/policy")
def read_policy(
    model: ModelPath, principal: Reader, context: ContextDep, response: Response
) -> GatePolicy:
    """What a candidate of this model must show before it is published."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
    response.headers.update(etag(found.policy_revision))
    return found.policy


@router.put("/{model}/policy")
def put_policy(
    model: ModelPath,
    body: GatePolicy,
    principal: Trainer,
    context: ContextDep,
    response: Response,
    seen: SeenRevision,
) -> GatePolicy:
    """Set what a candidate must show; it holds for every candidate that is not judged yet."""
    with context.database.write() as connection:
        changed = set_policy(connection, model, body, principal, context.clock(), seen)
    response.headers.update(etag(changed.policy_revision))
    return changed.policy
