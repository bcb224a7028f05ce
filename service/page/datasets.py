"""Datasets: the list, one dataset with its files and rejected rows, and posting one.

The script of the page sends the files, then the form names them. The script uses the routes of `/v1/uploads`,
which the page has under `/ui/v1/uploads` as well: there the session counts.
"""

import re
from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import Field

from cmcl.contract.api.datasets import Dataset, PostedDataset
from cmcl.contract.dataset import MANIFESTS, SUFFIXES, TEXT_NAMES
from cmcl.contract.modality import Frozen
from service.api import datasets, uploads
from service.api.datasets import post_dataset
from service.api.dependencies import ContextDep, DatasetPath, ModelPath, Reader, require_body_type
from service.api.jobs import read_job
from service.api.models import read_model
from service.api.pagination import CursorQuery, get_offset_seek
from service.context import Context
from service.core.errors import Conflict
from service.core.principal import Principal
from service.database.engine import Seek
from service.datasets.intake import SCHEME, NewDataset
from service.datasets.uploads import EXPIRY_HOURS
from service.page.collections import takes_of
from service.page.forms import ModelFilter, ReadingWriter, posted, see_other, validated
from service.page.lists import DATASETS, WantedQuery, find
from service.page.rendering import PREFIX, pages_of
from service.page.start import BROWSER_NAME_PATTERN

router = APIRouter(prefix=PREFIX)

_LISTED_FILES = 100
_MOST_REJECTED = 20
# Rows whose reasons are counted, and reasons that are shown.
_COUNTED, _MOST_REASONS = 1000, 8
# Of a dataset, what was posted.
_POSTED = {
    "model",
    "name",
    "pair",
    "shards",
    "evaluation_shards",
    "evaluation_share",
    "evaluate_only",
    "dry_run",
}

router.include_router(uploads.router, dependencies=[Depends(require_body_type)])

# The form has their ids, and a form is small.
MOST_FILES = 500
Percent = Annotated[float, Field(ge=0, le=100)]


@router.get("/datasets")
def datasets_page(
    request: Request,
    principal: Reader,
    context: ContextDep,
    wanted: WantedQuery,
    model: ModelFilter = None,
) -> Response:
    """Datasets, the newest first."""
    found = find(context, DATASETS, {"owner": principal.owner, "model": model}, wanted)
    listed = datasets.list_datasets(principal, context, found.seek).items
    return pages_of(request).render(
        request, "datasets.html", datasets=listed, found=found, model=model
    )


@router.get("/datasets/{dataset}")
def dataset_page(
    request: Request,
    dataset: DatasetPath,
    principal: Reader,
    context: ContextDep,
    cursor: CursorQuery = None,
) -> Response:
    """One dataset. `cursor`: of its rows that cannot be used."""
    found = datasets.read_dataset(dataset, principal, context)
    job = read_job(found.job, principal, context) if found.job else None
    seek = get_offset_seek(cursor, _MOST_REJECTED)
    rejected = datasets.list_rejected_rows(dataset, principal, context, seek)
    return pages_of(request).render(
        request,
        "dataset.html",
        dataset=found,
        job=job,
        files=_files(found),
        reasons=_reasons(found, principal, context),
        rejected=rejected.items or (found.rejected.first if found.rejected else []),
        next_cursor=rejected.next_cursor,
        most_files=_LISTED_FILES,
    )


@router.post("/datasets/{dataset}/repair")
def repair(
    request: Request, dataset: DatasetPath, principal: ReadingWriter, context: ContextDep
) -> Response:
    """Post a refused dataset again, from the same files, without the rows that cannot be used.

    Which rows these are depends on the files alone, so that the share which they need is known.
    """
    found = datasets.read_dataset(dataset, principal, context)
    if not found.quarantine_reason or not found.rejected or found.rejected.needed_share is None:
        raise Conflict(f"dataset {dataset} was not refused because of rows that can be left out")
    values = found.model_dump(include=_POSTED, mode="json")
    new = validated(NewDataset, {**values, "max_bad_share": found.rejected.needed_share})
    return _posted(request, post_dataset(new, principal, context, None))


def _posted(request: Request, answer: Response) -> Response:
    """Show the job of a dataset that was posted."""
    job = PostedDataset.model_validate_json(bytes(answer.body)).job
    # A sealed dataset has a job.
    address = f"jobs/{job.id}" if job is not None else "jobs"
    return see_other(
        request, address, "dataset-known" if answer.status_code == 200 else "dataset-posted"
    )


# What differs from row to row in a reason: names in quotes, and words with digits.
_OF_ONE_ROW = re.compile(r"'[^']*'|\S*\d\S*")


def _reasons(dataset: Dataset, principal: Principal, context: Context) -> list[tuple[str, int]]:
    """The most frequent reasons of its rows that cannot be used, and how many rows have each."""
    if not dataset.rejected:
        return []
    seek = Seek[int](None, "asc", _COUNTED)
    rows = datasets.list_rejected_rows(dataset.id, principal, context, seek).items
    found = Counter(_OF_ONE_ROW.sub("…", row.reason) for row in rows or dataset.rejected.first)
    return found.most_common(_MOST_REASONS)


def _files(dataset: Dataset) -> list[tuple[str, str, bool]]:
    """Name and address of its files as they were posted, and whether they are held out."""
    posted = [(shard, dataset.evaluate_only) for shard in dataset.shards]
    posted += [(shard, True) for shard in dataset.evaluation_shards]
    return [(shard.name or shard.uri, shard.uri, is_held_out) for shard, is_held_out in posted]


class DatasetForm(Frozen):
    """A dataset whose files were uploaded: ids of uploads, separated by spaces."""

    name: str = ""
    first: str = ""
    second: str = ""
    uploads: str = ""
    evaluation_uploads: str = ""
    evaluation_share: Percent | None = None
    max_bad_share: Percent | None = None
    evaluate_only: bool = False
    dry_run: bool = False

    def request(self, model: str) -> NewDataset:
        """The body of the request. Raises RequestValidationError."""
        values = {
            "model": model,
            "name": self.name,
            "pair": {"first": self.first, "second": self.second},
            "shards": _addresses(self.uploads),
            "evaluation_shards": _addresses(self.evaluation_uploads),
            "evaluation_share": self._held_out_share(),
            "max_bad_share": _share(self.max_bad_share),
            "evaluate_only": self.evaluate_only,
            "dry_run": self.dry_run,
        }
        return validated(NewDataset, values)

    def _held_out_share(self) -> float | None:
        """The form has a share from the beginning, which does not count if other rows are held out, or all of them."""
        if self.evaluate_only or self.evaluation_uploads:
            return None
        return _share(self.evaluation_share)


@router.get("/models/{model}/post")
def dataset_form(
    request: Request,
    model: ModelPath,
    principal: ReadingWriter,
    context: ContextDep,
    again: Annotated[str | None, Query(pattern=r"^ds-[0-9a-f]{12}$")] = None,
) -> Response:
    """The form of a dataset with its files. `again`: a dataset whose values the form begins with."""
    settings = context.settings
    earlier = datasets.read_dataset(again, principal, context) if again else None
    return pages_of(request).render(
        request,
        "post_dataset.html",
        model=read_model(model, principal, context),
        earlier=earlier,
        name_pattern=BROWSER_NAME_PATTERN,
        file_bytes_max=settings.upload_bytes_max,
        most_files=MOST_FILES,
        kept_hours=EXPIRY_HOURS,
        rules={
            "suffixes": SUFFIXES,
            "texts": TEXT_NAMES,
            "manifests": MANIFESTS,
            "takes": takes_of(model, principal, context),
        },
    )


@router.post("/models/{model}/post")
def accept(
    request: Request,
    model: ModelPath,
    form: Annotated[DatasetForm, posted(DatasetForm)],
    principal: ReadingWriter,
    context: ContextDep,
) -> Response:
    """Post the dataset of these uploads, and show its job."""
    return _posted(request, post_dataset(form.request(model), principal, context, None))


def _addresses(ids: str) -> list[dict[str, str]]:
    return [{"uri": f"{SCHEME}{each}"} for each in ids.split()]


def _share(percent: float | None) -> float | None:
    return None if not percent else percent / 100
