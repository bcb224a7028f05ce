"""Datasets: post, extend, seal, delete."""

from datetime import datetime
from typing import Self

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.modality import ModalityPair
from service.api.dependencies import (
    ContextDep,
    DatasetPath,
    IdempotencyKeyDep,
    ModelQuery,
    Reader,
    Writer,
)
from service.api.idempotency import respond, response_record
from service.api.jobs import JobView
from service.api.pagination import Limit, NumberCursor, Page, page
from service.context import Context
from service.database.queries import datasets, jobs
from service.database.rows import (
    DatasetRecord,
    ResponseRecord,
)
from service.datasets.addresses import Intake
from service.datasets.intake import Accepted, accept_dataset, add_shards, seal_dataset
from service.datasets.intake import delete_dataset as remove_dataset
from service.datasets.request import NewDataset, NewShards
from service.lookup import get_dataset
from service.principal import Principal

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


class DatasetSummary(BaseModel):
    """A dataset without its shards."""

    id: str
    model: str
    name: str
    pair: ModalityPair
    job: str | None = Field(description="null while the dataset is open")
    rows: int | None = Field(description="rows to train on; null until it is validated")
    quarantine_reason: str | None = Field(description="why its rows cannot be used")
    created_at: datetime
    sealed_at: datetime | None = Field(description="null while shards can be added")

    @classmethod
    def of(cls, dataset: DatasetRecord, job: str | None) -> Self:
        """Create it from a record."""
        return cls(
            id=dataset.id,
            model=dataset.model,
            name=dataset.name,
            pair=dataset.pair,
            job=job,
            rows=dataset.manifest.rows if dataset.manifest else None,
            quarantine_reason=dataset.quarantine_reason,
            created_at=dataset.created_at,
            sealed_at=dataset.sealed_at,
        )


class DatasetView(DatasetSummary):
    """A dataset as it was posted, and its manifest."""

    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...]
    evaluation_share: float | None
    manifest: DatasetManifest | None = Field(
        description="digest and rows of each shard; null until it is validated"
    )

    @classmethod
    def of(cls, dataset: DatasetRecord, job: str | None) -> Self:
        """Create it from a record."""
        request = NewDataset.model_validate(dataset.request)
        return cls(
            **DatasetSummary.of(dataset, job).model_dump(),
            shards=request.shards,
            evaluation_shards=request.evaluation_shards,
            evaluation_share=request.evaluation_share,
            manifest=dataset.manifest,
        )


class AcceptedDataset(BaseModel):
    """A dataset and the job that learns it; an open dataset has no job."""

    dataset: DatasetSummary
    job: JobView | None


_KNOWN: dict[int | str, dict[str, object]] = {
    200: {"model": AcceptedDataset, "description": "The dataset exists already"}
}


@router.post(
    "",
    status_code=202,
    response_model=AcceptedDataset,
    responses={
        **_KNOWN,
        201: {"model": AcceptedDataset, "description": "The dataset is open for more shards"},
    },
)
def post_dataset(
    body: NewDataset, principal: Writer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Accept a dataset and start a job that learns it. The same shards again return 200 and the same job.

    With `sealed: false` it stays open for more shards (201), and its job starts once it is sealed.
    """

    intake = _intake(context, principal, body)

    def effect(connection: Connection) -> ResponseRecord:
        accepted = accept_dataset(connection, body, intake)
        status = (202 if accepted.job else 201) if accepted.is_new else 200
        return response_record(key, status, _view(accepted), _location(accepted))

    return respond(context, key, effect)


@router.get("")
def list_datasets(
    principal: Reader,
    context: ContextDep,
    cursor: NumberCursor,
    model: ModelQuery = None,
    limit: Limit = 50,
) -> Page[DatasetSummary]:
    """List datasets in the order of their arrival."""
    with context.database.read() as connection:
        found = datasets.page(connection, principal.owner, model, cursor, limit + 1)
        job_of = jobs.of_datasets(connection, [dataset.id for dataset in found])
    return page(
        found,
        limit,
        lambda each: DatasetSummary.of(each, job_of.get(each.id)),
        lambda each: each.sequence,
    )


@router.get("/{dataset}")
def read_dataset(dataset: DatasetPath, principal: Reader, context: ContextDep) -> DatasetView:
    """Read a dataset with its shards."""
    with context.database.read() as connection:
        found = get_dataset(connection, dataset, principal)
        job = jobs.of_dataset(connection, dataset)
    return DatasetView.of(found, job.id if job else None)


@router.post("/{dataset}/shards", response_model=DatasetView)
def append_shards(
    dataset: DatasetPath,
    body: NewShards,
    principal: Writer,
    context: ContextDep,
    key: IdempotencyKeyDep,
) -> JSONResponse:
    """Add shards to an open dataset. 409 if it is sealed."""

    intake = _intake(context, principal, body)

    def effect(connection: Connection) -> ResponseRecord:
        grown = add_shards(connection, dataset, body, intake)
        return response_record(key, 200, DatasetView.of(grown, None))

    return respond(context, key, effect)


@router.post("/{dataset}/seal", status_code=202, response_model=AcceptedDataset, responses=_KNOWN)
def post_seal(
    dataset: DatasetPath, principal: Writer, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Seal a dataset and start its job. Sealing it again returns 200 and the same job."""

    intake = _intake(context, principal, NewShards())

    def effect(connection: Connection) -> ResponseRecord:
        sealed = seal_dataset(connection, dataset, intake)
        status = 202 if sealed.is_new else 200
        return response_record(key, status, _view(sealed), _location(sealed))

    return respond(context, key, effect)


@router.delete("/{dataset}", status_code=204)
def delete_dataset(dataset: DatasetPath, principal: Writer, context: ContextDep) -> None:
    """Delete a dataset that is open, or whose job ended without a version. 409 otherwise."""
    with context.database.write() as connection:
        remove_dataset(connection, dataset, principal, context.clock())


def _intake(context: Context, principal: Principal, posted: NewShards) -> Intake:
    return Intake.of(principal, context.clock(), context.settings.allowed_prefixes, posted)


def _view(accepted: Accepted) -> AcceptedDataset:
    job = accepted.job
    return AcceptedDataset(
        dataset=DatasetSummary.of(accepted.dataset, job.id if job else None),
        job=JobView.of(job) if job else None,
    )


def _location(accepted: Accepted) -> str:
    job = accepted.job
    return f"/v1/jobs/{job.id}" if job else f"/v1/datasets/{accepted.dataset.id}"
