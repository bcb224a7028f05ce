"""Datasets: posted once, learned once."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from service.api.answers import answer, record
from service.api.dependencies import (
    ContextDep,
    DatasetPath,
    Limit,
    ModelQuery,
    NumberCursor,
    RequestKeyDep,
    encode_cursor,
)
from service.api.schemas import AcceptedDataset, DatasetSummary, DatasetView, JobView, Page
from service.control.intake import NewDataset, accept_dataset, get_dataset
from service.database import datasets, jobs
from service.database.rows import AnswerRecord

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


@router.post("", status_code=202, response_model=AcceptedDataset)
def post_dataset(body: NewDataset, context: ContextDep, key: RequestKeyDep) -> JSONResponse:
    """Accept a dataset; a job learns it. The same shards again answer 200 and the same job."""

    def effect(connection: Connection) -> AnswerRecord:
        allowed = context.settings.allowed_prefixes
        accepted = accept_dataset(connection, body, allowed, context.clock())
        view = AcceptedDataset(
            dataset=DatasetSummary.of(accepted.dataset, accepted.job.id),
            job=JobView.of(accepted.job),
        )
        status = 202 if accepted.is_new else 200
        return record(key, status, view, f"/v1/jobs/{accepted.job.id}")

    return answer(context, key, effect)


@router.get("")
def list_datasets(
    context: ContextDep, cursor: NumberCursor, model: ModelQuery = None, limit: Limit = 50
) -> Page[DatasetSummary]:
    """Datasets in the order of their arrival."""
    with context.database.read() as connection:
        found = datasets.page(connection, model, cursor, limit + 1)
        job_of = jobs.of_datasets(connection, [dataset.id for dataset in found])
    following = encode_cursor(found[limit - 1].sequence) if len(found) > limit else None
    views = [DatasetSummary.of(dataset, job_of[dataset.id]) for dataset in found[:limit]]
    return Page(items=views, next_cursor=following)


@router.get("/{dataset}")
def read_dataset(dataset: DatasetPath, context: ContextDep) -> DatasetView:
    """One dataset with its shards."""
    with context.database.read() as connection:
        found = get_dataset(connection, dataset)
        return DatasetView.of(found, jobs.of_dataset(connection, dataset).id)
