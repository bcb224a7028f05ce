"""Datasets: post, extend, seal, delete."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from cmcl.contract.api.access import Scope
from cmcl.contract.api.datasets import Dataset, DatasetSummary, PostedDataset
from cmcl.contract.api.jobs import Job, JobState
from cmcl.contract.dataset import RejectedRow
from cmcl.contract.errors import InvalidVersion
from cmcl.contract.modality import NAME_PATTERN
from cmcl.contract.version import EvaluationResult
from cmcl.storage.datasets import read_rejected
from service.api.dependencies import (
    ContextDep,
    DatasetPath,
    Flag,
    IdempotencyKeyDep,
    ModelQuery,
    Reader,
    SeenRevision,
    Trainer,
    Writer,
    check_scopes,
)
from service.api.idempotency import respond, response_row
from service.api.jobs import NOT_PREPARED, accepted_job, to_job, to_prepared
from service.api.pagination import NumberSeek, OffsetSeek, Page, encode_cursor, foreign_cursor, page
from service.auth.ownership import get_dataset
from service.context import Context
from service.core.errors import FieldProblem, Unprocessable
from service.core.principal import Principal
from service.database.queries import datasets, jobs
from service.database.rows import DatasetRow, JobRow, ResponseRow
from service.datasets.intake import (
    Accepted,
    Intake,
    NewDataset,
    NewShards,
    accept_dataset,
    add_shards,
    files_of,
    newest_evaluation,
    seal_dataset,
)
from service.datasets.intake import delete_dataset as remove_dataset
from service.registry.combining import NewErasure, request_erasure, request_unlearning

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


Unlearn = Annotated[
    Flag,
    Query(
        description="whether to publish a version that never saw the dataset, and delete it then"
    ),
]
UnlearnFrom = Annotated[
    str | None,
    Query(
        pattern=NAME_PATTERN,
        description="model that unlearns it, if that is not the one that it was posted to: a branch, or one that merged "
        "it. The dataset is not deleted then",
    ),
]


def to_summary(
    dataset: DatasetRow, job: str | None = None, job_state: JobState | None = None
) -> DatasetSummary:
    """Convert a row, with the id and the state of its job."""
    return DatasetSummary(
        id=dataset.id,
        model=dataset.model,
        name=dataset.name,
        pair=dataset.pair,
        job=job,
        job_state=job_state,
        dry_run=bool(dataset.request.get("dry_run", False)),
        evaluate_only=bool(dataset.request.get("evaluate_only", False)),
        files=files_of(dataset),
        rows=dataset.manifest.rows if dataset.manifest else None,
        evaluation_rows=dataset.manifest.evaluation_rows if dataset.manifest else None,
        quarantine_reason=dataset.quarantine_reason,
        created_at=dataset.created_at,
        sealed_at=dataset.sealed_at,
    )


def to_dataset(
    dataset: DatasetRow, record: JobRow | None, evaluation: EvaluationResult | None = None
) -> Dataset:
    """Convert the rows of a dataset and its job, and its newest measurement."""
    request = NewDataset.model_validate(dataset.request)
    return Dataset(
        **vars(_summary(dataset, record)),
        shards=request.shards,
        evaluation_shards=request.evaluation_shards,
        evaluation_share=request.evaluation_share,
        max_bad_share=request.max_bad_share,
        **(vars(to_prepared(record)) if record else NOT_PREPARED),
        evaluation=evaluation,
        manifest=dataset.manifest,
    )


_KNOWN: dict[int | str, dict[str, object]] = {
    200: {"model": PostedDataset, "description": "The dataset exists already"}
}


@router.post(
    "",
    status_code=202,
    response_model=PostedDataset,
    responses={
        **_KNOWN,
        201: {"model": PostedDataset, "description": "The dataset is open for more shards"},
    },
)
def post_dataset(
    body: NewDataset, principal: Writer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Accept a dataset and start a job that learns it, or with `evaluate_only` measures it. The same shards again return
    200 and the same job.

    A dataset has features, or raw items for modalities with an encoder: its files decide. A dry run reports how it would
    be learned, and keeps nothing. With `sealed: false` it stays open for more shards (201), and its job starts once it is sealed.
    """

    intake = _intake(context, principal, body)

    def effect(connection: Connection) -> ResponseRow:
        accepted = accept_dataset(connection, body, intake)
        status = (202 if accepted.job else 201) if accepted.is_new else 200
        return response_row(key, status, _view(accepted), _location(accepted))

    return respond(context, key, effect)


@router.get("")
def list_datasets(
    principal: Reader, context: ContextDep, seek: NumberSeek, model: ModelQuery = None
) -> Page[DatasetSummary]:
    """List datasets in the order of their arrival; with `order=desc`, the newest first."""
    with context.database.read() as connection:
        found = datasets.page(connection, principal.owner, model, seek.peek())
        job_of = jobs.of_datasets(connection, [dataset.id for dataset in found])
    return page(
        found,
        seek,
        lambda each: to_summary(each, *job_of.get(each.id, ())),
        lambda each: each.sequence,
    )


@router.get("/{dataset}")
def read_dataset(dataset: DatasetPath, principal: Reader, context: ContextDep) -> Dataset:
    """Read a dataset with its shards."""
    with context.database.read() as connection:
        found = get_dataset(connection, dataset, principal)
        job = jobs.of_dataset(connection, dataset)
        evaluation = newest_evaluation(connection, found, job)
    return to_dataset(found, job, evaluation)


@router.get("/{dataset}/rejected-rows")
def list_rejected_rows(
    dataset: DatasetPath, principal: Reader, context: ContextDep, seek: OffsetSeek
) -> Page[RejectedRow]:
    """List the rows that were left out, with the reason of each. Empty before the dataset is prepared."""
    with context.database.read() as connection:
        get_dataset(connection, dataset, principal)
    try:
        found = read_rejected(context.store, dataset, seek.after or 0, seek.limit)
    except InvalidVersion as error:
        if seek.after is None:
            raise
        raise foreign_cursor(encode_cursor(seek.after)) from error
    following = None if found.next_offset is None else encode_cursor(found.next_offset)
    return Page(items=found.rows, next_cursor=following)


@router.post("/{dataset}/shards", response_model=Dataset)
def append_shards(
    dataset: DatasetPath,
    body: NewShards,
    principal: Writer,
    context: ContextDep,
    key: IdempotencyKeyDep,
) -> JSONResponse:
    """Add shards to an open dataset. 409 if it is sealed."""

    intake = _intake(context, principal, body)

    def effect(connection: Connection) -> ResponseRow:
        grown = add_shards(connection, dataset, body, intake)
        return response_row(key, 200, to_dataset(grown, None))

    return respond(context, key, effect)


@router.post("/{dataset}/seal", status_code=202, response_model=PostedDataset, responses=_KNOWN)
def post_seal(
    dataset: DatasetPath,
    principal: Writer,
    context: ContextDep,
    key: IdempotencyKeyDep,
    seen: SeenRevision = None,
) -> JSONResponse:
    """Seal a dataset and start its job. Sealing it again returns 200 and the same job.

    Its ETag is the number of its files in quotes: 412 if others were added since.
    """

    intake = _intake(context, principal, NewShards())

    def effect(connection: Connection) -> ResponseRow:
        sealed = seal_dataset(connection, dataset, intake, seen)
        status = 202 if sealed.is_new else 200
        return response_row(key, status, _view(sealed), _location(sealed))

    return respond(context, key, effect)


@router.delete(
    "/{dataset}",
    status_code=204,
    response_model=None,
    responses={
        202: {"model": Job, "description": "With `unlearn`: the job that unlearns it"},
        200: {"model": Job, "description": "With `unlearn`: the job was started before"},
    },
)
def delete_dataset(
    dataset: DatasetPath,
    principal: Writer,
    context: ContextDep,
    unlearn: Unlearn = False,
    model: UnlearnFrom = None,
) -> Response:
    """Delete a dataset that is open, that is measured only, or whose job ended without a version. 409 otherwise.

    Later versions are not measured on a deleted dataset; what earlier ones report of it stays.

    With `unlearn`, a job publishes a version that never saw a dataset which was learned (scope `train` as well). When it is
    published, the dataset is deleted, if it was posted to that model. 409 if the newest version has not learned it, if
    heads were trained on rows (the policy preserve, or a method), and if it is the only dataset.
    """
    if not unlearn:
        if model is not None:
            message = "it has a meaning with unlearn=true only; leave it out"
            raise Unprocessable(message, FieldProblem("model", message, model))
        with context.database.write() as connection:
            remove_dataset(connection, dataset, principal, context.clock())
        return Response(status_code=204)
    check_scopes(principal, [Scope.TRAIN])
    now, trace = context.clock(), context.metrics.spans.traceparent()

    def effect(connection: Connection) -> ResponseRow:
        return accepted_job(request_unlearning(connection, dataset, model, principal, now, trace))

    return respond(context, None, effect)


@router.post(
    "/{dataset}/erase",
    status_code=202,
    response_model=Job,
    responses={200: {"model": Job, "description": "The row is being erased, or was"}},
)
def erase_row(
    dataset: DatasetPath,
    body: NewErasure,
    principal: Trainer,
    context: ContextDep,
    key: IdempotencyKeyDep,
) -> Response:
    """Erase a row from a dataset that was learned.

    A job publishes a version whose dataset never had the row, to rounding; its lineage has the receipt. The job fails
    with `cannot_combine` if the dataset has no such row, or also holds it out. 409 if the newest version has not learned
    the dataset, or the model is not erasable.
    """
    now, trace = context.clock(), context.metrics.spans.traceparent()

    def effect(connection: Connection) -> ResponseRow:
        found = request_erasure(connection, dataset, body, principal, now, trace)
        return accepted_job(found, key)

    return respond(context, key, effect)


def _intake(context: Context, principal: Principal, posted: NewShards) -> Intake:
    trace = context.metrics.spans.traceparent()
    return Intake.of(principal, context.clock(), context.settings, posted, trace)


def _view(accepted: Accepted) -> PostedDataset:
    job = accepted.job
    return PostedDataset(dataset=_summary(accepted.dataset, job), job=to_job(job) if job else None)


def _summary(dataset: DatasetRow, job: JobRow | None) -> DatasetSummary:
    return to_summary(dataset, job.id, job.state) if job else to_summary(dataset)


def _location(accepted: Accepted) -> str:
    job = accepted.job
    return f"/v1/jobs/{job.id}" if job else f"/v1/datasets/{accepted.dataset.id}"
