"""Models: create, branch, merge, delete; their summaries and gates; declared encoders."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field
from sqlalchemy import Connection

from cmcl.contract.api.jobs import Job, JobState
from cmcl.contract.api.models import (
    BranchOrigin,
    Encoder,
    JobCounts,
    Model,
    ModelSummary,
    QueryDrift,
)
from cmcl.contract.drift import DriftReport
from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.contract.job import VersionRef
from cmcl.contract.modality import NAME_PATTERN, Frozen, ModelName
from cmcl.contract.model import Gate
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from service.api.dependencies import (
    Admin,
    ContextDep,
    IdempotencyKeyDep,
    ModalityPath,
    ModelPath,
    Reader,
    SeenRevision,
    Trainer,
    Writer,
    etag,
)
from service.api.idempotency import respond, response_row
from service.api.jobs import accepted_job
from service.api.pagination import LARGEST_NUMBER, Page, TextSeek, page
from service.auth.ownership import get_model
from service.core.principal import Principal
from service.database.queries import models, overviews
from service.database.queries.overviews import Summaries
from service.database.rows import BranchPoint, ModelRow, ResponseRow
from service.database.stale import check_not_stale
from service.registry import models as registry
from service.registry.combining import request_merge
from service.registry.live_pointer import check_may_change
from service.registry.models import (
    Added,
    Limits,
    NewModality,
    NewModel,
    add_modality,
    branch,
    check_method,
    create_model,
    set_gate,
)

router = APIRouter(prefix="/v1", tags=["models"])

# `model@version`, with a version that every database can hold.
VERSION_PATTERN = NAME_PATTERN.removesuffix("$") + "@[1-9][0-9]{0,8}$"


class NewBranch(Frozen):
    """A branch as it is posted."""

    name: ModelName
    version: int = Field(ge=1, le=LARGEST_NUMBER, description="version to start from")


class NewMerge(Frozen):
    """A merge as it is posted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"from": "street-scenes-site-b@4"}]})

    source: str = Field(
        alias="from",
        pattern=VERSION_PATTERN,
        description="version of another model whose datasets are added, as `model@version`",
    )

    @property
    def ref(self) -> VersionRef:
        name, _, version = self.source.rpartition("@")
        return VersionRef(model=name, version=int(version))


def to_origin(branched_from: BranchPoint | None) -> BranchOrigin | None:
    """Convert where a branch starts from."""
    return BranchOrigin.model_validate(vars(branched_from)) if branched_from else None


def to_model(model: ModelRow) -> Model:
    return Model(
        name=model.name,
        owner=model.owner,
        branched_from=to_origin(model.branched_from),
        **vars(model.spec),
        head_version=model.head or None,
        live_version=model.live_version,
        live_generation=model.live_generation,
        encoders=model.encoders,
        created_at=model.created_at,
    )


def _limits(context: ContextDep, principal: Principal) -> Limits:
    settings = context.settings
    return Limits(settings.limit(principal.owns_as, "models"), settings.heads_bytes_max)


@router.post(
    "/models",
    status_code=201,
    response_model=Model,
    responses={200: {"model": Model, "description": "The model exists already"}},
)
def post_model(
    body: NewModel, principal: Writer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Create a model. The same name with the same specification returns 200 and the same model.

    A modality with an encoder has the encoder's width.
    """
    spec = body.spec(context.settings.encoders_by_name)

    def effect(connection: Connection) -> ResponseRow:
        limits, now = _limits(context, principal), context.clock()
        created = create_model(connection, body.name, spec, principal, now, limits)
        status = 201 if created.is_new else 200
        return response_row(key, status, to_model(created.model), f"/v1/models/{body.name}")

    check_not_stale(context.store, context.database)
    if spec.method:
        check_method(spec.method)
    return respond(context, key, effect)


@router.get("/models")
def list_models(
    principal: Reader,
    context: ContextDep,
    seek: TextSeek,
    branched_from: Annotated[
        str | None,
        Query(pattern=NAME_PATTERN, description="list the models that were branched from this one"),
    ] = None,
) -> Page[Model]:
    """List models by name."""
    with context.database.read() as connection:
        found = models.page(connection, principal.owner, seek.peek(), branched_from)
    return page(found, seek, to_model, lambda model: model.name)


@router.get("/models/{model}")
def read_model(model: ModelPath, principal: Reader, context: ContextDep) -> Model:
    """Read a model."""
    with context.database.read() as connection:
        return to_model(get_model(connection, model, principal))


@router.delete("/models/{model}", status_code=204)
def delete_model(model: ModelPath, principal: Admin, context: ContextDep) -> None:
    """Delete a model with all its versions. 409 while a job of it has not ended.

    Its name is not used again; its files are removed later.
    """
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        registry.delete_model(connection, model, principal, context.clock())


@router.post("/models/{model}/branch", status_code=201, response_model=Model)
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

    def effect(connection: Connection) -> ResponseRow:
        point = BranchPoint(model, body.version)
        limits, now = _limits(context, principal), context.clock()
        made = branch(connection, body.name, point, principal, now, limits)
        return response_row(key, 201, to_model(made), f"/v1/models/{body.name}")

    return respond(context, key, effect)


@router.put("/models/{model}/modalities/{modality}")
def put_modality(
    model: ModelPath,
    modality: ModalityPath,
    body: NewModality,
    principal: Writer,
    context: ContextDep,
) -> Model:
    """Add a modality to a model. The same one again changes nothing; 409 if it has another width or encoder.

    Versions that exist do not have it. The first dataset that uses it connects it to the others.
    """
    added = Added(modality, body, context.settings.encoders_by_name)
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        changed = add_modality(
            connection, model, added, principal, context.clock(), _limits(context, principal)
        )
    return to_model(changed)


@router.post(
    "/models/{model}/merge",
    status_code=202,
    response_model=Job,
    responses={200: {"model": Job, "description": "The job was started before"}},
)
def post_merge(
    model: ModelPath,
    body: NewMerge,
    principal: Trainer,
    context: ContextDep,
    key: IdempotencyKeyDep,
) -> JSONResponse:
    """Start a job that publishes a version of this model which has also learned what a version of another model has.

    Datasets that both have count once. The other model stays as it is. 409 if the two have different owners,
    specifications, encoders, or first datasets of a modality that they share, or the policy is not improve.
    """

    trace = context.metrics.spans.traceparent()

    def effect(connection: Connection) -> ResponseRow:
        found = request_merge(connection, model, body.ref, principal, context.clock(), trace)
        return accepted_job(found, key)

    check_may_change(context, model, principal)
    return respond(context, key, effect)


@router.get("/models/{model}/gate")
def read_gate(model: ModelPath, principal: Reader, context: ContextDep, response: Response) -> Gate:
    """Read the gate that a candidate must meet to be published."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
    response.headers.update(etag(found.gate_revision))
    return found.gate


@router.put("/models/{model}/gate")
def put_gate(
    model: ModelPath,
    body: Gate,
    principal: Trainer,
    context: ContextDep,
    response: Response,
    seen: SeenRevision,
) -> Gate:
    """Set the gate. It applies to every candidate that is not judged yet."""
    with context.database.write() as connection:
        changed = set_gate(connection, model, body, principal, context.clock(), seen)
    response.headers.update(etag(changed.gate_revision))
    return changed.gate


@router.get("/encoders")
def list_encoders(_: Reader, context: ContextDep) -> Page[Encoder]:
    """List the declared encoders by name. All are on one page."""
    declared = sorted(context.settings.encoders, key=lambda encoder: encoder.name)
    return Page(items=[Encoder.model_validate(each, from_attributes=True) for each in declared])


_WAITING = (JobState.QUEUED, JobState.PREPARING, JobState.PREPARED)
_RUNNING = (JobState.SUBMITTING, JobState.RUNNING, JobState.GATING)


def to_model_summary(model: ModelRow, found: Summaries) -> ModelSummary:
    name, gate_bound = model.name, model.gate.max_drift
    counts = found.jobs.get(name, {})
    return ModelSummary(
        name=name,
        owner=model.owner,
        policy=model.spec.policy,
        method=model.spec.method,
        created_at=model.created_at,
        branched_from=to_origin(model.branched_from),
        live_version=model.live_version,
        live_generation=model.live_generation,
        newest=found.newest.get(name),
        drift_bound=model.spec.drift_bound if gate_bound is None else gate_bound,
        jobs=JobCounts(
            waiting=sum(counts.get(state, 0) for state in _WAITING),
            running=sum(counts.get(state, 0) for state in _RUNNING),
            held=counts.get(JobState.HELD, 0),
        ),
        current=found.current.get(name),
        last_ended=found.last_ended.get(name),
    )


@router.get("/overview")
def list_summaries(principal: Reader, context: ContextDep, seek: TextSeek) -> Page[ModelSummary]:
    """List summaries of models by name: what is live, learned, held and failed."""
    with context.database.read() as connection:
        found = models.page(connection, principal.owner, seek.peek())
        of_each = overviews.read_summaries(connection, [model.name for model in found])
    return page(
        found, seek, lambda model: to_model_summary(model, of_each), lambda model: model.name
    )


@router.get("/models/{model}/drift")
def read_query_drift(model: ModelPath, principal: Reader, context: ContextDep) -> QueryDrift:
    """Read how far the queries of a model lie from what it has learned."""
    with context.database.read() as connection:
        get_model(connection, model, principal)
    try:
        report = read_document(context.store, layout.drift_report(model), DriftReport)
    except (ObjectNotFound, InvalidVersion):
        # A damaged report is logged by `QueryDriftLoop`, and replaced with the next one.
        return QueryDrift(drifting=[], windows={})
    windows = {name: list(each.windows) for name, each in report.modalities.items()}
    return QueryDrift(drifting=report.drifting, windows=windows)


@router.get("/models/{model}/summary")
def read_summary(model: ModelPath, principal: Reader, context: ContextDep) -> ModelSummary:
    """Read the summary of a model."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
        return to_model_summary(found, overviews.read_summaries(connection, [model]))
