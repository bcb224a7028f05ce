"""Accepting what users post: models and datasets. One transaction each, nothing outside it."""

import hashlib
import json
import uuid
from dataclasses import dataclass
from datetime import datetime

from pydantic import Field
from sqlalchemy import Connection

from service.database import datasets, jobs, models
from service.database.rows import DatasetRecord, JobRecord, ModelRecord
from service.errors import Conflict, FieldProblem, NotFound, Unprocessable
from workers.contract.dataset import ShardRef
from workers.contract.errors import InvalidUri
from workers.contract.modality import Frozen, ModalityPair, ModelName
from workers.contract.model import ModelSpec
from workers.storage.uris import check_allowed


class NewDataset(Frozen):
    """A dataset as it is posted; kept word for word, so that its job can be tried again."""

    model: ModelName
    name: ModelName = Field(description="for people; need not be unique")
    pair: ModalityPair
    shards: tuple[ShardRef, ...] = Field(min_length=1, max_length=10_000)
    evaluation_shards: tuple[ShardRef, ...] = Field(
        default=(), max_length=10_000, description="held out: measured on, never trained on"
    )

    @property
    def fingerprint(self) -> str:
        """The same for the same rows of the same model, whatever the dataset is called."""
        content = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Created:
    """A model, and whether this request made it."""

    model: ModelRecord
    is_new: bool


@dataclass(frozen=True)
class Accepted:
    """A dataset with its job, and whether this request made them."""

    dataset: DatasetRecord
    job: JobRecord
    is_new: bool


def create_model(connection: Connection, name: str, spec: ModelSpec, now: datetime) -> Created:
    """The model of that name. Raises Conflict if it exists with another specification."""
    existing = models.find(connection, name)
    if existing is None:
        models.create(connection, name, spec, now)
        return Created(get_model(connection, name), is_new=True)
    if existing.spec != spec:
        raise Conflict(
            f"model {name!r} exists with another specification; a model's specification is fixed",
            *_differences(existing.spec, spec),
        )
    return Created(existing, is_new=False)


def accept_dataset(
    connection: Connection, request: NewDataset, allowed: tuple[str, ...], now: datetime
) -> Accepted:
    """Write the dataset and its job; the same dataset again answers the same job.

    Raises NotFound for the model, Unprocessable for what can be seen without opening a shard.
    """
    model = get_model(connection, request.model)
    _check_modalities(model, request.pair)
    _check_addresses(request, allowed)
    same = datasets.find_same(connection, request.model, request.fingerprint)
    if same is not None:
        return Accepted(same, jobs.of_dataset(connection, same.id), is_new=False)
    return _write(connection, request, now)


def get_model(connection: Connection, name: str) -> ModelRecord:
    """The model of that name. Raises NotFound."""
    model = models.find(connection, name)
    if model is None:
        message = f"there is no model {name!r}"
        raise NotFound(message, FieldProblem("model", message, name))
    return model


def get_dataset(connection: Connection, dataset: str) -> DatasetRecord:
    """The dataset of that id. Raises NotFound."""
    found = datasets.find(connection, dataset)
    if found is None:
        raise NotFound(f"there is no dataset {dataset!r}")
    return found


def get_job(connection: Connection, job: str) -> JobRecord:
    """The job of that id. Raises NotFound."""
    found = jobs.find(connection, job)
    if found is None:
        raise NotFound(f"there is no job {job!r}")
    return found


def _write(connection: Connection, request: NewDataset, now: datetime) -> Accepted:
    dataset, job = f"ds-{_random()}", f"job-{_random()}"
    datasets.create(
        connection,
        dataset,
        request.model_dump(mode="json"),
        request.pair,
        request.fingerprint,
        now,
    )
    jobs.create(connection, job, request.model, dataset, now)
    return Accepted(get_dataset(connection, dataset), get_job(connection, job), is_new=True)


def _random() -> str:
    return uuid.uuid4().hex[:12]


def _check_modalities(model: ModelRecord, pair: ModalityPair) -> None:
    permitted = ", ".join(sorted(model.spec.modalities))
    problems = [
        FieldProblem(
            f"pair.{side}",
            f"model {model.name!r} has no modality {modality!r}; permitted: {permitted}",
            modality,
        )
        for side, modality in (("first", pair.first), ("second", pair.second))
        if modality not in model.spec.modalities
    ]
    if problems:
        raise Unprocessable("unknown modality", *problems)


def _check_addresses(request: NewDataset, allowed: tuple[str, ...]) -> None:
    """Both lists together: a held-out shard that is trained on would measure nothing."""
    problems: list[FieldProblem] = []
    seen: set[str] = set()
    for field, refs in (
        ("shards", request.shards),
        ("evaluation_shards", request.evaluation_shards),
    ):
        for index, ref in enumerate(refs):
            problem = _address_problem(ref.uri, allowed, seen)
            if problem:
                problems.append(FieldProblem(f"{field}[{index}].uri", problem, ref.uri))
            seen.add(ref.uri)
    if problems:
        raise Unprocessable("an address cannot be used", *problems)


def _address_problem(uri: str, allowed: tuple[str, ...], seen: set[str]) -> str | None:
    if uri in seen:
        return f"{uri!r} is named twice"
    try:
        check_allowed(uri, allowed)
    except InvalidUri as error:
        return str(error)
    return None


def _differences(existing: ModelSpec, asked: ModelSpec) -> list[FieldProblem]:
    there, wanted = existing.model_dump(mode="json"), asked.model_dump(mode="json")
    return [
        FieldProblem(field, f"it is {there[field]!r}", wanted[field])
        for field in there
        if there[field] != wanted[field]
    ]
