"""Jobs that read no rows: unlearn a dataset, erase a row of one, merge a version of another model.

What they need is checked when they are requested, and again when their turn comes: jobs before them change the model.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite

from pydantic import Field
from sqlalchemy import Connection

from cmcl.contract.job import ErasedRow, VersionRef, row_digest
from cmcl.contract.modality import Frozen, Modality, ModelName
from cmcl.contract.version import LearnedDataset, datasets_to_merge
from service.auth.ownership import get_model, get_version
from service.core.errors import Conflict, FieldProblem, NotFound, Unprocessable
from service.core.principal import Principal
from service.database.queries import datasets, jobs, models, versions
from service.database.rows import JobRow, ModelRow, VersionRow


@dataclass(frozen=True)
class Requested:
    """A job, and whether this request created it."""

    job: JobRow
    is_new: bool


class NewErasure(Frozen):
    """A row that is to be erased, as it is posted."""

    features: dict[Modality, list[float]] = Field(
        description="by modality, both sides of the row as they were learned: the numbers of its shard",
    )
    model: ModelName | None = Field(
        default=None,
        description="model that erases it, if that is not the one that the dataset was posted to",
    )


def request_unlearning(
    connection: Connection,
    dataset: str,
    name: str | None,
    principal: Principal,
    now: datetime,
    traceparent: str | None = None,
) -> Requested:
    """Insert a job that unlearns a dataset; return the one that has not ended, if there is one.

    `name`: the model, by default the one that the dataset was posted to. Raises NotFound, and Conflict if the newest
    version cannot unlearn it.
    """
    model = _locked(connection, dataset, name, principal)
    known = jobs.open_change(connection, model.name, "unlearn", dataset)
    if known is not None:
        return Requested(known, is_new=False)
    line = check_unlearning(model, _lineage(connection, model), dataset)
    about = {"dataset": dataset, "dataset_name": line.name}
    job = jobs.create_change(connection, model, "unlearn", about, now, traceparent)
    return Requested(job, is_new=True)


def _locked(
    connection: Connection, dataset: str, name: str | None, principal: Principal
) -> ModelRow:
    """Lock the model, by default the one that the dataset was posted to: two requests at once make one job."""
    found = datasets.find(connection, dataset)
    if found is None or not principal.sees(found.owner):
        raise NotFound(f"there is no dataset {dataset!r}")
    models.lock(connection, name or found.model)
    model = get_model(connection, name or found.model, principal)
    if found.deleted_at is not None and name is None:
        raise NotFound(f"there is no dataset {dataset!r}")
    return model


def request_erasure(
    connection: Connection,
    dataset: str,
    asked: NewErasure,
    principal: Principal,
    now: datetime,
    traceparent: str | None = None,
) -> Requested:
    """Insert a job that erases a row from a dataset; return the one that erases it or has done so, if there is one.

    Raises NotFound, Unprocessable for features that no row of the dataset has, and Conflict if the newest version cannot
    erase it.
    """
    model = _locked(connection, dataset, asked.model, principal)
    line = check_erasure(model, _lineage(connection, model), dataset)
    first, second = _sides(model, line, asked.features)
    row = ErasedRow(
        dataset=dataset,
        row=row_digest(dataset, first.tobytes(), second.tobytes()),
        first=tuple(first),
        second=tuple(second),
        requested_at=now,
        requested_by=principal.name,
    )
    known = jobs.erasing(connection, model.name, row)
    if known is not None:
        return Requested(known, is_new=False)
    about = {"dataset": dataset, "dataset_name": line.name, "erases": row}
    job = jobs.create_change(connection, model, "erase", about, now, traceparent)
    return Requested(job, is_new=True)


def _sides(
    model: ModelRow, line: LearnedDataset, features: Mapping[str, Sequence[float]]
) -> "tuple[array[float], array[float]]":
    """The features of both sides as float32, in the order of the pair."""
    if features.keys() != set(line.pair.modalities):
        message = f"dataset {line.name!r} has rows of {' and '.join(line.pair.modalities)}"
        raise Unprocessable(message, FieldProblem("features", message, sorted(features)))
    sides = []
    for modality in line.pair.modalities:
        numbers, width = array("f", features[modality]), model.spec.widths[modality]
        if len(numbers) != width or not all(map(isfinite, numbers)):
            message = f"features of {modality!r} are {width} numbers in the range of float32"
            problem = FieldProblem(f"features.{modality}", message, f"{len(numbers)} numbers")
            raise Unprocessable(message, problem)
        sides.append(numbers)
    return sides[0], sides[1]


def request_merge(
    connection: Connection,
    name: str,
    ref: VersionRef,
    principal: Principal,
    now: datetime,
    traceparent: str | None = None,
) -> Requested:
    """Insert a job that merges another version into a model; return the one that has not ended, if there is one.

    Raises NotFound, and Conflict if the two cannot be merged.
    """
    # Two requests at once make one job, and two that merge each other's model do not wait for each other.
    for each in sorted({name, ref.model}):
        (models.lock if each == name else models.lock_shared)(connection, each)
    model = get_model(connection, name, principal)
    other = get_version(connection, ref.model, ref.version, principal)
    known = jobs.open_change(connection, name, "merge", None, str(ref))
    if known is not None:
        return Requested(known, is_new=False)
    check_merge(connection, model, other)
    about = {"dataset_name": str(ref), "merges": ref}
    job = jobs.create_change(connection, model, "merge", about, now, traceparent)
    return Requested(job, is_new=True)


def problem_of(connection: Connection, job: JobRow, model: ModelRow) -> str | None:
    """Why the job cannot start from the newest version, or None."""
    try:
        if job.kind == "unlearn" and job.dataset is not None:
            check_unlearning(model, _lineage(connection, model), job.dataset)
        elif job.erases is not None:
            check_erasure(model, _lineage(connection, model), job.erases.dataset)
            if not job.erases.first:
                return "the row was forgotten when the job ended: erase it again, in a new job"
        elif job.merges is not None:
            other = versions.find(connection, job.merges.model, job.merges.version)
            if other is None:
                return f"there is no version {job.merges}"
            check_merge(connection, model, other)
    except Conflict as error:
        return str(error)
    return None


def merged_lines(connection: Connection, job: JobRow) -> tuple[LearnedDataset, ...]:
    """The lineage of the version that a job merges; empty for other jobs."""
    if job.merges is None:
        return ()
    other = versions.find(connection, job.merges.model, job.merges.version)
    return () if other is None else other.manifest.learned


def _lineage(connection: Connection, model: ModelRow) -> tuple[LearnedDataset, ...]:
    newest = versions.find(connection, model.name, model.head) if model.head else None
    return () if newest is None else newest.manifest.learned


# --- Unlearn ------------------------------------------------------------------------------------


def check_unlearning(
    model: ModelRow, learned: Sequence[LearnedDataset], dataset: str
) -> LearnedDataset:
    """Return the line of the lineage. Raises Conflict if the newest version cannot unlearn the dataset."""
    line = _line_of(model, learned, dataset)
    if len(learned) == 1:
        raise Conflict(
            f"{line.name!r} is the only dataset of model {model.name!r}, and a version without any has no heads; "
            "delete the model"
        )
    return line


def check_erasure(
    model: ModelRow, learned: Sequence[LearnedDataset], dataset: str
) -> LearnedDataset:
    """Return the line of the lineage. Raises Conflict if no row can be erased from the dataset."""
    line = _line_of(model, learned, dataset)
    if line.exact_sums is None:
        raise Conflict(
            f"no row can be erased from {line.name!r}: model {model.name!r} is not erasable, and keeps of a dataset what "
            "is rounded, and pooled over both halves. Unlearn the dataset and post it without the row; datasets of a "
            "model that is created with erasable: true can be changed by the row"
        )
    return line


def _line_of(model: ModelRow, learned: Sequence[LearnedDataset], dataset: str) -> LearnedDataset:
    line = next((each for each in learned if each.dataset == dataset), None)
    if line is None:
        newest = (
            f"version {model.head} of model {model.name!r}, the newest,"
            if model.head
            else model.name
        )
        message = f"{newest} has not learned dataset {dataset}, so nothing of it can be removed"
        raise Conflict(message, FieldProblem("dataset", message, dataset))
    _check_solves(model, line)
    return line


def _check_solves(model: ModelRow, line: LearnedDataset) -> None:
    if model.spec.solves:
        return
    before = line.version - 1
    again = (
        f"branch it from version {before} and post the later datasets to the branch"
        if before
        else "create a model and post the other datasets to it"
    )
    raise Conflict(
        f"model {model.name!r} learns by {model.spec.learning}: its heads were trained on rows and hold what each dataset taught, so "
        f"no dataset can be taken out exactly. Instead, {again}; models with the policy improve can unlearn"
    )


# --- Merge --------------------------------------------------------------------------------------


def check_merge(connection: Connection, model: ModelRow, other: VersionRow) -> None:
    """Raises Conflict unless the newest version of the model and the other version can become one."""
    source = models.find(connection, other.model)
    if source is None or source.deleted_at is not None:
        raise Conflict(f"model {other.model!r} was deleted")
    _check_models(model, source)
    _check_modalities(model, source, other)
    if other.retired_at is not None:
        raise Conflict(f"version {other.number} of {other.model!r} was retired")
    if other.stored_at is None:
        raise Conflict(
            f"version {other.number} of {other.model!r} is still being stored; try again shortly"
        )
    ours, theirs = _lineage(connection, model), other.manifest.learned
    _check_encoders(model, other)
    new = datasets_to_merge(ours, theirs)
    if not new:
        raise Conflict(
            f"version {model.head} of {model.name!r} has learned every dataset of {other.model}@{other.number}"
        )
    for line in new:
        row = datasets.find(connection, line.dataset)
        if row is not None and row.deleted_at is not None:
            raise Conflict(
                f"dataset {line.name!r} ({line.dataset}) was unlearned and deleted, and {other.model}@{other.number} "
                f"still has it; unlearn it there first: DELETE /v1/datasets/{line.dataset}?unlearn=true&model={other.model}"
            )


def _check_models(model: ModelRow, source: ModelRow) -> None:
    if model.name == source.name:
        raise Conflict(
            f"{model.name!r} cannot be merged with itself; name a version of another model"
        )
    if model.owner != source.owner:
        raise Conflict(f"models {model.name!r} and {source.name!r} belong to different owners")
    if not model.spec.solves:
        raise Conflict(
            f"model {model.name!r} learns by {model.spec.learning}; "
            "only models with the policy improve, whose heads are solved from moments, can be merged"
        )
    if not model.head:
        raise Conflict(f"model {model.name!r} has no version yet; branch {source.name!r} instead")
    ours, theirs = (
        each.spec.model_dump(mode="json", exclude={"modalities"}) for each in (model, source)
    )
    apart = [
        FieldProblem(field, f"it is {ours[field]!r} in {model.name!r}", theirs[field])
        for field in ours
        if ours[field] != theirs[field]
    ]
    if apart:
        names = ", ".join(problem.field for problem in apart)
        raise Conflict(f"the specifications of the two models differ in {names}", *apart)


def _check_modalities(model: ModelRow, source: ModelRow, other: VersionRow) -> None:
    """Modalities can be added to each model, so only those that the other version has learned must be the same."""
    learned = {name for line in other.manifest.learned for name in line.pair.modalities}
    for modality in sorted(learned):
        ours, theirs = (each.spec.modalities.get(modality) for each in (model, source))
        if ours is None:
            message = (
                f"model {model.name!r} has no modality {modality!r}, which {source.name!r} has learned; add it: "
                f"PUT /v1/models/{model.name}/modalities/{modality}"
            )
            raise Conflict(message, FieldProblem(f"modalities.{modality}", message))
        if ours != theirs:
            message = f"the modality {modality!r} has another width or encoder in {source.name!r}"
            raise Conflict(message, FieldProblem(f"modalities.{modality}", message))


def _check_encoders(model: ModelRow, other: VersionRow) -> None:
    for modality in sorted(model.encoders.keys() & other.manifest.encoders.keys()):
        difference = other.manifest.encoders[modality].difference(model.encoders[modality])
        if difference:
            raise Conflict(f"the encoders of {modality!r} differ: {difference}")
