"""Intake of datasets: post, add shards, seal, delete. One transaction each, without calls beyond the database."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from cmcl.contract.job import JobKind
from cmcl.contract.modality import ModalityPair
from cmcl.contract.version import EvaluationResult
from service.auth.ownership import get_dataset, lock_model_shared
from service.core.errors import Conflict, FieldProblem, PreconditionFailed, Unprocessable
from service.core.principal import Principal
from service.core.states import JobState
from service.database.queries import datasets, jobs, models, versions
from service.database.rows import DatasetRow, JobRow, ModelRow
from service.datasets.encoders import check_encoders
from service.datasets.request import (
    MOST_SHARDS,
    Intake,
    NewDataset,
    NewShards,
    check_addresses,
    contents_of,
    record_uses,
    with_names,
)


@dataclass(frozen=True)
class Accepted:
    """A dataset with its job, and whether this request created them. An open dataset has no job."""

    dataset: DatasetRow
    job: JobRow | None
    is_new: bool


def accept_dataset(connection: Connection, request: NewDataset, intake: Intake) -> Accepted:
    """Insert the dataset and, if it is sealed, its job; return the existing ones for the same dataset.

    Raises NotFound for the model, Unprocessable for what is wrong without opening a shard, Conflict if an encoder is not
    the one of the model's features.
    """
    model = lock_model_shared(connection, request.model, intake.principal)
    check_modalities(model, request.pair)
    _check_purpose(request)
    contents = contents_of(connection, request.uris, intake.principal)
    known_by = request.fingerprints(contents) if request.sealed else None
    if known_by is not None:
        _check_has_shards(request)
        same = datasets.find_same(connection, request.model, known_by)
        if same is not None:
            return Accepted(same, jobs.of_dataset(connection, same.id), is_new=False)
    check_encoders(model, request, intake.encoders)
    check_addresses(connection, request, intake, contents)
    document = with_names(connection, request).model_dump(mode="json")
    dataset = datasets.create(connection, model.owner, document, intake.now, known_by)
    record_uses(connection, dataset.id, request)
    job = None if known_by is None else _new_job(connection, dataset, request, intake)
    return Accepted(dataset, job, is_new=True)


def add_shards(
    connection: Connection, dataset: str, added: NewShards, intake: Intake
) -> DatasetRow:
    """Append shards to an open dataset. Raises NotFound, Conflict if it is sealed, Unprocessable."""
    datasets.lock(connection, dataset)
    found = get_dataset(connection, dataset, intake.principal)
    if found.sealed_at is not None:
        raise Conflict(f"dataset {dataset} is sealed: shards can no longer be added")
    request = NewDataset.model_validate(found.request)
    if not added.uris:
        raise Unprocessable("there is nothing to add: give shards, evaluation_shards, or both")
    grown = request.model_copy(
        update={
            "shards": request.shards + added.shards,
            "evaluation_shards": request.evaluation_shards + added.evaluation_shards,
        }
    )
    _check_number(grown)
    _check_purpose(grown)
    contents = contents_of(connection, grown.uris, intake.principal)
    check_addresses(connection, added, intake, contents, before=request)
    record_uses(connection, dataset, added)
    document = with_names(connection, grown).model_dump(mode="json")
    return datasets.set_request(connection, dataset, document)


def files_of(dataset: DatasetRow) -> int:
    """The number of its files, which only grows while it is open."""
    posted = (dataset.request.get(field) for field in ("shards", "evaluation_shards"))
    return sum(len(files) for files in posted if isinstance(files, list))


def seal_dataset(
    connection: Connection, dataset: str, intake: Intake, seen_files: int | None = None
) -> Accepted:
    """Seal an open dataset and insert its job. A sealed one is returned with the job that it has.

    Raises NotFound; PreconditionFailed if it does not have `seen_files` files; Unprocessable without shards; Conflict if the model has the same dataset, or features of another
    encoder.
    """
    name = get_dataset(connection, dataset, intake.principal).model
    model = lock_model_shared(connection, name, intake.principal)
    datasets.lock(connection, dataset)
    found = get_dataset(connection, dataset, intake.principal)
    if seen_files is not None and seen_files != files_of(found):
        raise PreconditionFailed(
            f"dataset {dataset} has {files_of(found)} files, not {seen_files}; read it again"
        )
    if found.sealed_at is not None:
        return Accepted(found, jobs.of_dataset(connection, dataset), is_new=False)
    request = NewDataset.model_validate(found.request)
    _check_has_shards(request)
    contents = contents_of(connection, request.uris, intake.principal)
    known_by = request.fingerprints(contents)
    same = datasets.find_same(connection, request.model, known_by)
    if same is not None:
        raise Conflict(f"the same shards were posted as {same.id}; delete this one")
    check_encoders(model, request, intake.encoders)
    sealed = datasets.seal(connection, dataset, known_by, intake.now)
    return Accepted(sealed, _new_job(connection, sealed, request, intake), is_new=True)


def _new_job(
    connection: Connection, dataset: DatasetRow, request: NewDataset, intake: Intake
) -> JobRow:
    kind: JobKind = "evaluate" if request.evaluate_only else "learn"
    return jobs.create(connection, dataset, intake.now, kind, intake.traceparent)


def delete_dataset(
    connection: Connection, dataset: str, principal: Principal, now: datetime
) -> None:
    """Delete a dataset without a version. Raises NotFound, and Conflict during its job or after it was learned.

    What a version has learned stays in it, with the moments that protect it.
    """
    datasets.lock(connection, dataset)
    found = get_dataset(connection, dataset, principal)
    job = jobs.of_dataset(connection, dataset)
    if job is not None and job.finished_at is None:
        raise Conflict(f"job {job.id} of this dataset is {job.state}; cancel it first")
    if job is not None and job.state == JobState.PUBLISHED:
        raise Conflict(
            f"version {job.version} of {job.model!r} has learned this dataset, and later ones protect it; with "
            "unlearn=true, a job publishes a version that never saw it (policy improve)"
        )
    datasets.set_deleted(connection, found, principal.name, now)


def newest_evaluation(
    connection: Connection, dataset: DatasetRow, job: JobRow | None
) -> EvaluationResult | None:
    """The recall of a dataset that is measured only in the newest version, or else in the one that was live first."""
    if job is None or job.kind != "evaluate":
        return None
    model = models.find(connection, dataset.model)
    newest = versions.find(connection, dataset.model, model.head) if model is not None else None
    if newest is not None:
        for each in newest.manifest.report.evaluation_only:
            if each.dataset == dataset.id:
                return EvaluationResult(version=newest.number, recall=each.recall, note=each.note)
    return job.evaluation


def check_modalities(model: ModelRow, pair: ModalityPair) -> None:
    """Raises Unprocessable for a modality that the model does not declare."""
    permitted = ", ".join(sorted(model.spec.widths))
    problems = [
        FieldProblem(
            f"pair.{side}",
            f"model {model.name!r} has no modality {modality!r}; permitted: {permitted}",
            modality,
        )
        for side, modality in (("first", pair.first), ("second", pair.second))
        if modality not in model.spec.widths
    ]
    if problems:
        raise Unprocessable("unknown modality", *problems)


def _check_purpose(request: NewDataset) -> None:
    """Raises Unprocessable for options that contradict `evaluate_only`."""
    if not request.evaluate_only:
        return
    given = {
        "evaluation_share": "every row is held out; leave it out",
        "evaluation_shards": "every row of `shards` is held out; name all files there",
        "dry_run": "there is nothing to report on a dataset that is not learned; post it without dry_run",
    }
    problems = [
        FieldProblem(field, message) for field, message in given.items() if getattr(request, field)
    ]
    if problems:
        raise Unprocessable("these options have no meaning with evaluate_only", *problems)


def _check_has_shards(request: NewDataset) -> None:
    if not request.shards:
        message = "it is empty: at least 1 shard is needed (or sealed: false, to add some later)"
        raise Unprocessable("a dataset without shards", FieldProblem("shards", message))


def _check_number(request: NewDataset) -> None:
    for field in ("shards", "evaluation_shards"):
        number = len(getattr(request, field))
        if number > MOST_SHARDS:
            message = f"it would have {number} shards, permitted are {MOST_SHARDS}"
            raise Unprocessable(message, FieldProblem(field, message, number))
