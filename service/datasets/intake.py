"""Accepting datasets that users post. One transaction each, nothing outside it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Self

from pydantic import BeforeValidator, ConfigDict, FailFast, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import Connection

from cmcl.contract.dataset import ShardRef
from cmcl.contract.errors import InvalidUri
from cmcl.contract.modality import Frozen, ModalityPair, ModelName
from service.database.queries import datasets, events, jobs
from service.database.rows import (
    DatasetRecord,
    Event,
    Fingerprints,
    JobRecord,
    ModelRecord,
    random_id,
)
from service.datasets.upload_uris import SCHEME, contents_of, note_uses, problems_of
from service.errors import Conflict, FieldProblem, Unprocessable
from service.lookup import get_dataset, hold_model
from service.principal import Principal
from service.states import JobState
from workers.storage.uris import check_allowed

MOST_SHARDS = 10_000


def _check_length(value: object) -> object:
    """Before the items are looked at."""
    if isinstance(value, list | tuple) and len(value) > MOST_SHARDS:
        raise PydanticCustomError(
            "too_long", f"there are {len(value)} shards, permitted are {MOST_SHARDS}"
        )
    return value


# Validation ends at the first wrong item: each of them would be an error of its own.
Shards = Annotated[
    tuple[ShardRef, ...],
    Field(max_length=MOST_SHARDS),
    FailFast(),
    BeforeValidator(_check_length),
]


class NewShards(Frozen):
    """Shards that an open dataset shall have as well."""

    shards: Shards = ()
    evaluation_shards: Shards = Field(
        default=(), description="held out: measured on, never trained on"
    )


class NewDataset(NewShards):
    """A dataset as it is posted; kept word for word, so that its job can be tried again."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "street-scenes",
                    "name": "captions-2026-11",
                    "pair": {"first": "image", "second": "text"},
                    "shards": [{"uri": "s3://captures/2026-11/pairs-000.parquet"}],
                    "evaluation_share": 0.1,
                }
            ]
        }
    )

    model: ModelName
    name: ModelName = Field(description="for people; need not be unique")
    pair: ModalityPair
    evaluation_share: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="share of the rows in `shards` that is held out, chosen by their feature_a: the same "
        "rows whatever the order, also after more shards were added",
    )
    sealed: bool = Field(
        default=True,
        description="false: leave it open for more shards; its job begins once it is sealed",
    )

    @property
    def fingerprint(self) -> str:
        """The same for the same addresses and the same model, whatever the dataset is called."""
        content = self.model_dump(mode="json", exclude={"name", "sealed"})
        if self.evaluation_share is None:
            # As it was before shares existed: what was posted then is still recognized.
            del content["evaluation_share"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def fingerprints(self, contents: Mapping[str, str]) -> Fingerprints:
        """The same for the same files as well, if uploads are among them, however often they were sent.

        `contents`: SHA-256 by address, of uploads that are there.
        """
        if not contents:
            return Fingerprints(self.fingerprint)
        by_content = self.model_copy(
            update={
                "shards": _by_content(self.shards, contents),
                "evaluation_shards": _by_content(self.evaluation_shards, contents),
            }
        )
        return Fingerprints(self.fingerprint, by_content.fingerprint)


@dataclass(frozen=True)
class Accepted:
    """A dataset with its job, and whether this request made them. An open one has no job yet."""

    dataset: DatasetRecord
    job: JobRecord | None
    is_new: bool


@dataclass(frozen=True)
class Intake:
    """Who posts, what time it is, and which of the addresses that were posted cannot be used.

    To judge an address may ask the file system, so it is done before the transaction, which holds the lock
    of all writers. `judged`: by address, why it cannot be used, or None; uploads are not among them.
    """

    principal: Principal
    now: datetime
    judged: Mapping[str, str | None]

    @classmethod
    def of(
        cls, principal: Principal, now: datetime, allowed: tuple[str, ...], posted: NewShards
    ) -> Self:
        """For what was posted, where shards may lie at `allowed`. Call it outside of a transaction."""
        addresses = {ref.uri for ref in (*posted.shards, *posted.evaluation_shards)}
        judged = {uri: _judge(uri, allowed) for uri in addresses if not uri.startswith(SCHEME)}
        return cls(principal, now, judged)


def accept_dataset(connection: Connection, request: NewDataset, intake: Intake) -> Accepted:
    """Write the dataset and, if it is sealed, its job; the same dataset again answers the same job.

    Raises NotFound for the model, Unprocessable for what can be seen without opening a shard.
    """
    model = hold_model(connection, request.model, intake.principal)
    check_modalities(model, request.pair)
    contents = _contents(connection, request, intake)
    known_by = request.fingerprints(contents) if request.sealed else None
    if known_by is not None:
        _check_has_shards(request)
        same = datasets.find_same(connection, request.model, known_by)
        if same is not None:
            return Accepted(same, jobs.of_dataset(connection, same.id), is_new=False)
    _check_each(connection, request, NewShards(), contents, intake)
    dataset = f"ds-{random_id()}"
    document = request.model_dump(mode="json")
    datasets.create(connection, dataset, model.owner, document, request.pair, intake.now)
    _note_uploads(connection, dataset, request)
    if known_by is not None:
        return _sealed(connection, dataset, known_by, intake)
    return Accepted(get_dataset(connection, dataset, intake.principal), None, is_new=True)


def add_shards(
    connection: Connection, dataset: str, added: NewShards, intake: Intake
) -> DatasetRecord:
    """Append shards to an open dataset. Raises NotFound, Conflict once sealed, Unprocessable."""
    request = _open_request(connection, dataset, intake)
    if not added.shards and not added.evaluation_shards:
        raise Unprocessable("there is nothing to add: give shards, evaluation_shards, or both")
    grown = request.model_copy(
        update={
            "shards": request.shards + added.shards,
            "evaluation_shards": request.evaluation_shards + added.evaluation_shards,
        }
    )
    _check_number(grown)
    _check_each(connection, added, request, _contents(connection, grown, intake), intake)
    _note_uploads(connection, dataset, added)
    datasets.set_request(connection, dataset, grown.model_dump(mode="json"))
    return get_dataset(connection, dataset, intake.principal)


def seal_dataset(connection: Connection, dataset: str, intake: Intake) -> Accepted:
    """No more shards: its job begins. Sealing twice answers the same job.

    Raises NotFound; Unprocessable without shards; Conflict if the model has the same dataset.
    """
    model = get_dataset(connection, dataset, intake.principal).model
    hold_model(connection, model, intake.principal)
    datasets.lock(connection, dataset)
    found = get_dataset(connection, dataset, intake.principal)
    if found.sealed_at is not None:
        return Accepted(found, jobs.of_dataset(connection, dataset), is_new=False)
    request = NewDataset.model_validate(found.request)
    _check_has_shards(request)
    known_by = request.fingerprints(_contents(connection, request, intake))
    same = datasets.find_same(connection, request.model, known_by)
    if same is not None:
        raise Conflict(f"the same shards were posted as {same.id}; delete this one")
    return _sealed(connection, dataset, known_by, intake)


def delete_dataset(
    connection: Connection, dataset: str, principal: Principal, now: datetime
) -> None:
    """Raises NotFound, and Conflict while it is being learned, or once it was.

    What a version has learned stays in it, with its moments; that is what protects it.
    """
    datasets.lock(connection, dataset)
    found = get_dataset(connection, dataset, principal)
    job = jobs.of_dataset(connection, dataset)
    if job is not None and job.finished_at is None:
        raise Conflict(f"job {job.id} of this dataset is {job.state}; cancel it first")
    if job is not None and job.state == JobState.PUBLISHED:
        raise Conflict(
            f"version {job.version} of {job.model!r} has learned this dataset, "
            "and later ones protect it; it cannot be taken out"
        )
    datasets.set_deleted(connection, dataset, now)
    event = Event(
        kind="dataset.deleted",
        owner=found.owner,
        model=found.model,
        dataset=dataset,
        data={"actor": principal.name},
    )
    events.emit(connection, event, now)


def _open_request(connection: Connection, dataset: str, intake: Intake) -> NewDataset:
    """What an open dataset is so far; it is locked until the transaction ends."""
    datasets.lock(connection, dataset)
    found = get_dataset(connection, dataset, intake.principal)
    if found.sealed_at is not None:
        raise Conflict(f"dataset {dataset} is sealed: no shard can be added any more")
    return NewDataset.model_validate(found.request)


def _sealed(
    connection: Connection, dataset: str, known_by: Fingerprints, intake: Intake
) -> Accepted:
    datasets.seal(connection, dataset, known_by, intake.now)
    found = get_dataset(connection, dataset, intake.principal)
    job = f"job-{random_id()}"
    jobs.create(connection, job, found, intake.now)
    return Accepted(found, jobs.of_dataset(connection, dataset), is_new=True)


def _contents(connection: Connection, request: NewShards, intake: Intake) -> dict[str, str]:
    """As of now: an upload that is gone is known by its address alone."""
    uris = (ref.uri for ref in (*request.shards, *request.evaluation_shards))
    return contents_of(connection, uris, intake.principal)


def _by_content(refs: Shards, contents: Mapping[str, str]) -> Shards:
    """Files in the place of addresses. A digest that says the same of the file says nothing more."""
    return tuple(
        ShardRef(
            uri=f"sha256:{contents[ref.uri]}",
            sha256=None if ref.sha256 == contents[ref.uri] else ref.sha256,
        )
        if ref.uri in contents
        else ref
        for ref in refs
    )


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


def check_modalities(model: ModelRecord, pair: ModalityPair) -> None:
    """Raises Unprocessable for a modality that the model does not declare."""
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


def _note_uploads(connection: Connection, dataset: str, added: NewShards) -> None:
    named = (ref.uri for ref in (*added.shards, *added.evaluation_shards))
    note_uses(connection, dataset, named)


def check_addresses(connection: Connection, request: NewShards, intake: Intake) -> None:
    """Shards may lie at allowed addresses, and among the poster's uploads. Raises Unprocessable."""
    contents = _contents(connection, request, intake)
    _check_each(connection, request, NewShards(), contents, intake)


def _check_each(
    connection: Connection,
    added: NewShards,
    before: NewShards,
    contents: Mapping[str, str],
    intake: Intake,
) -> None:
    """Both lists together: a held-out shard that is trained on would measure nothing.

    Those `before` were judged when they came. Raises Unprocessable.
    """
    problems: list[FieldProblem] = []
    named = [ref.uri for ref in (*added.shards, *added.evaluation_shards)]
    unusable = {**intake.judged, **problems_of(connection, named, intake.principal)}
    seen = {
        contents.get(ref.uri, ref.uri): ref.uri
        for ref in (*before.shards, *before.evaluation_shards)
    }
    for field, refs in (
        ("shards", added.shards),
        ("evaluation_shards", added.evaluation_shards),
    ):
        for index, ref in enumerate(refs):
            file = contents.get(ref.uri, ref.uri)
            # An address that was not judged is a mistake of ours, and must not pass for a good one.
            problem = _same_file(ref.uri, seen[file]) if file in seen else unusable[ref.uri]
            if problem:
                problems.append(FieldProblem(f"{field}[{index}].uri", problem, ref.uri))
            seen.setdefault(file, ref.uri)
    if problems:
        raise Unprocessable("an address cannot be used", *problems)


def _judge(uri: str, allowed: tuple[str, ...]) -> str | None:
    """Why an address cannot be used."""
    try:
        check_allowed(uri, allowed)
    except InvalidUri as error:
        return str(error)
    return None


def _same_file(uri: str, before: str) -> str:
    if uri == before:
        return f"{uri!r} is named twice"
    return f"{uri!r} is the same file as {before!r} (SHA-256)"
