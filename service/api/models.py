"""Models: create, branch, delete, and the policy for candidates."""

from datetime import datetime
from typing import Self

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from cmcl.contract.modality import Frozen, ModelName
from cmcl.contract.model import ModelSpec
from cmcl.contract.policy import GatePolicy
from service.api.dependencies import (
    Admin,
    ContextDep,
    IdempotencyKeyDep,
    ModelPath,
    Reader,
    SeenRevision,
    Trainer,
    Writer,
    etag,
)
from service.api.idempotency import respond, response_record
from service.api.pagination import LARGEST_NUMBER, Limit, Page, TextCursor, page
from service.database.queries import models
from service.database.rows import (
    BranchPoint,
    ModelRecord,
    ResponseRecord,
)
from service.lookup import get_model
from service.registry import models as registry
from service.registry.models import Limits, branch, check_method, create_model, set_policy
from service.stale_database import check_may_change, check_not_lost

router = APIRouter(prefix="/v1/models", tags=["models"])


class NewModel(ModelSpec):
    """A model as it is posted: a name and a specification."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "street-scenes", "modalities": {"image": 1280, "text": 384}, "width": 256}
            ]
        }
    )

    name: ModelName

    @property
    def spec(self) -> ModelSpec:
        """The specification alone."""
        return ModelSpec.model_validate(self.model_dump(exclude={"name"}))


class BranchOrigin(BaseModel):
    """The version of another model that a branch starts from."""

    model: str
    version: int


class NewBranch(Frozen):
    """A branch as it is posted."""

    name: ModelName
    version: int = Field(ge=1, le=LARGEST_NUMBER, description="version to start from")


class ModelView(NewModel):
    """A model and its state."""

    owner: str
    head_version: int | None = Field(description="newest version")
    live_version: int | None = Field(description="version that serves requests")
    live_generation: int = Field(description="number of promotions")
    branched_from: BranchOrigin | None
    created_at: datetime

    @classmethod
    def of(cls, model: ModelRecord) -> Self:
        """Create it from a record."""
        origin = model.branched_from
        return cls(
            name=model.name,
            owner=model.owner,
            branched_from=BranchOrigin(**vars(origin)) if origin else None,
            **{field: getattr(model.spec, field) for field in ModelSpec.model_fields},
            head_version=model.head or None,
            live_version=model.live_version,
            live_generation=model.live_generation,
            created_at=model.created_at,
        )


def _limits(context: ContextDep) -> Limits:
    settings = context.settings
    return Limits(settings.models_per_owner, settings.heads_bytes_max)


@router.post(
    "",
    status_code=201,
    response_model=ModelView,
    responses={200: {"model": ModelView, "description": "The model exists already"}},
)
def post_model(
    body: NewModel, principal: Writer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Create a model. The same name with the same specification returns 200 and the same model."""

    def effect(connection: Connection) -> ResponseRecord:
        limits, now = _limits(context), context.clock()
        created = create_model(connection, body.name, body.spec, principal, now, limits)
        status = 201 if created.is_new else 200
        return response_record(key, status, ModelView.of(created.model), f"/v1/models/{body.name}")

    check_not_lost(context)
    check_method(body.spec.method)
    return respond(context, key, effect)


@router.get("")
def list_models(
    principal: Reader, context: ContextDep, cursor: TextCursor, limit: Limit = 50
) -> Page[ModelView]:
    """List models by name."""
    with context.database.read() as connection:
        found = models.page(connection, principal.owner, cursor, limit + 1)
    return page(found, limit, ModelView.of, lambda model: model.name)


@router.get("/{model}")
def read_model(model: ModelPath, principal: Reader, context: ContextDep) -> ModelView:
    """Read a model."""
    with context.database.read() as connection:
        return ModelView.of(get_model(connection, model, principal))


@router.delete("/{model}", status_code=204)
def delete_model(model: ModelPath, principal: Admin, context: ContextDep) -> None:
    """Delete a model with all its versions. 409 while a job of it has not ended.

    Its name is not used again; its files are removed later.
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
    key: IdempotencyKeyDep,
) -> JSONResponse:
    """Create a model with the versions of this one up to `version`, which develops independently.

    It serves requests at once and takes no storage: the files of these versions are shared.
    """

    def effect(connection: Connection) -> ResponseRecord:
        point = BranchPoint(model, body.version)
        limits, now = _limits(context), context.clock()
        made = branch(connection, body.name, point, principal, now, limits)
        return response_record(key, 201, ModelView.of(made), f"/v1/models/{body.name}")

    return respond(context, key, effect)


@router.get("/{model}/policy")
def read_policy(
    model: ModelPath, principal: Reader, context: ContextDep, response: Response
) -> GatePolicy:
    """Read the policy that a candidate must meet to be published."""
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
    """Set the policy. It applies to every candidate that is not judged yet."""
    with context.database.write() as connection:
        changed = set_policy(connection, model, body, principal, context.clock(), seen)
    response.headers.update(etag(changed.policy_revision))
    return changed.policy
