"""Intake of datasets: what users post, the fingerprints by which a dataset is recognized, and its checks.

Posting, adding shards, sealing and deleting are one transaction each, without calls beyond the database. An address of a
shard is one that users may name, or `upload:up-<12 hex>` for an upload.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Annotated, Self, TypeVar

from pydantic import BeforeValidator, ConfigDict, FailFast, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import Connection

from cmcl.contract.api.jobs import JobState
from cmcl.contract.dataset import ShardRef
from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.errors import InvalidUri
from cmcl.contract.job import JobKind
from cmcl.contract.modality import Frozen, Modality, ModalityPair, ModelName
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import EvaluationResult
from cmcl.storage.uris import check_allowed
from service.auth.ownership import get_dataset, lock_model_shared
from service.core.errors import Conflict, FieldProblem, PreconditionFailed, Unprocessable
from service.core.principal import Principal
from service.core.settings import Settings
from service.database.queries import datasets, jobs, models, uploads, versions
from service.database.rows import DatasetRow, Fingerprints, JobRow, ModelRow, UploadRow

MOST_SHARDS = 10_000
SCHEME = "upload:"
_URI = re.compile(r"^upload:(up-[0-9a-f]{12})\Z")


def _check_length(value: object) -> object:
    """Refuse a list that is too long before its items are validated."""
    if isinstance(value, list | tuple) and len(value) > MOST_SHARDS:
        raise PydanticCustomError(
            "too_long", f"there are {len(value)} shards, permitted are {MOST_SHARDS}"
        )
    return value


# Validation ends at the first invalid item: a list of thousands would give as many errors.
Shards = Annotated[
    tuple[ShardRef, ...], Field(max_length=MOST_SHARDS), FailFast(), BeforeValidator(_check_length)
]


class NewShards(Frozen):
    """Shards to add to an open dataset."""

    shards: Shards = ()
    evaluation_shards: Shards = Field(
        default=(), description="held out: measured on, never trained on"
    )

    @property
    def uris(self) -> list[str]:
        return [ref.uri for ref in (*self.shards, *self.evaluation_shards)]


Posted = TypeVar("Posted", bound=NewShards)


class NewDataset(NewShards):
    """A dataset as it is posted. It is stored unchanged, so that its job can be retried."""

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
        description="share of the rows in `shards` that is held out, chosen by the content of their first "
        "modality: the same rows in any order, also after more shards were added",
    )
    evaluate_only: bool = Field(
        default=False,
        description="true: nothing is learned of this dataset. Recall is measured on all rows of `shards`, with the live "
        "version at once and with every later version; the pair need never have been trained",
    )
    max_bad_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="largest share of rows that may be left out because they cannot be used; by default 0.01 "
        "of raw rows, and no row of features",
    )
    encoders: Annotated[dict[Modality, EncoderIdentity], Field(max_length=2)] = Field(
        default={}, description="by modality: the encoder that computed the features in these files"
    )
    dry_run: bool = Field(
        default=False, description="report how the dataset would be learned, and keep nothing of it"
    )
    sealed: bool = Field(
        default=True,
        description="false: leave it open for more shards; its job starts once it is sealed",
    )

    @property
    def fingerprint(self) -> str:
        """Equal for the same addresses and the same model; names do not count.

        A dry run, and a dataset that is measured only, have another fingerprint than the dataset to learn.
        `max_bad_share` and `encoders` do not count.
        """
        names = {"__all__": {"name"}}
        content = self.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(("name", "sealed", "max_bad_share", "encoders"), True),
                "shards": names,
                "evaluation_shards": names,
            },
        )
        if self.evaluation_share is None:
            del content["evaluation_share"]
        for flag in ("dry_run", "evaluate_only"):
            if not content[flag]:
                del content[flag]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def fingerprints(self, contents: Mapping[str, str]) -> Fingerprints:
        """Fingerprints by address and by content; the second is equal for the same files in other uploads.

        `contents`: SHA-256 by address, of complete uploads.
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


def _by_content(refs: Shards, contents: Mapping[str, str]) -> Shards:
    """Replace addresses of uploads by digests. A reference's own digest is dropped where it says the same."""
    return tuple(
        ShardRef(
            uri=f"sha256:{contents[ref.uri]}",
            sha256=None if ref.sha256 == contents[ref.uri] else ref.sha256,
        )
        if ref.uri in contents
        else ref
        for ref in refs
    )


def uri_of(upload: UploadRow) -> str | None:
    """The address that a dataset can name; None before the upload is complete."""
    return f"{SCHEME}{upload.id}" if upload.state == "complete" else None


def upload_of(uri: str) -> str | None:
    """The id of the upload that an address names; None for any other address."""
    found = _URI.match(uri)
    return found.group(1) if found else None


@dataclass(frozen=True)
class Intake:
    """The caller, the time, the declared encoders, and which of the posted addresses are not permitted.

    Checking an address may access the file system, so it happens before the transaction, which holds the lock of all
    writers. `checked`: by address, why it is not permitted, or None; without uploads. `traceparent`: of the
    request, if it is traced.
    """

    principal: Principal
    now: datetime
    checked: Mapping[str, str | None]
    encoders: Mapping[str, EncoderSpec]
    traceparent: str | None

    @classmethod
    def of(
        cls,
        principal: Principal,
        now: datetime,
        settings: Settings,
        posted: NewShards,
        traceparent: str | None = None,
    ) -> Self:
        """Check the posted addresses against the permitted prefixes. Call it outside a transaction."""
        addresses = {uri for uri in posted.uris if not uri.startswith(SCHEME)}
        checked = {uri: _address_problem(uri, settings.allowed_prefixes) for uri in addresses}
        return cls(principal, now, checked, settings.encoders_by_name, traceparent)


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
    _check_encoders(model, request, intake.encoders)
    check_addresses(connection, request, intake, contents)
    document = _with_names(connection, request).model_dump(mode="json")
    dataset = datasets.create(connection, model.owner, document, intake.now, known_by)
    _record_uses(connection, dataset.id, request)
    job = None if known_by is None else _new_job(connection, dataset, request, intake)
    assert (job is None) == (dataset.sealed_at is None), "a job starts when its dataset is sealed"
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
    _record_uses(connection, dataset, added)
    document = _with_names(connection, grown).model_dump(mode="json")
    stored = datasets.set_request(connection, dataset, document)
    assert files_of(stored) == files_of(found) + len(added.uris)
    return stored


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
    _check_encoders(model, request, intake.encoders)
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


def contents_of(
    connection: Connection, uris: Iterable[str], principal: Principal
) -> dict[str, str]:
    """SHA-256 by address, of complete uploads of the principal. Others are known by their address alone."""
    named = {uri: upload for uri in uris if (upload := upload_of(uri)) is not None}
    if not named:
        return {}
    digests = uploads.digests(connection, named.values(), principal.owner)
    return {uri: digests[upload] for uri, upload in named.items() if upload in digests}


def _with_names(connection: Connection, posted: Posted) -> Posted:
    """Return the posted shards with the file names of uploads, which have no name in their addresses."""
    named = {uri: upload for uri in posted.uris if (upload := upload_of(uri)) is not None}
    if not named:
        return posted
    filenames = uploads.filenames(connection, named.values())

    def named_ref(ref: ShardRef) -> ShardRef:
        name = ref.name or filenames.get(named.get(ref.uri, ""))
        return ref.model_copy(update={"name": name})

    return posted.model_copy(
        update={
            "shards": tuple(map(named_ref, posted.shards)),
            "evaluation_shards": tuple(map(named_ref, posted.evaluation_shards)),
        }
    )


def _record_uses(connection: Connection, dataset: str, shards: NewShards) -> None:
    """Record which uploads the dataset names: they are kept while it may still be read."""
    named = {upload for upload in map(upload_of, shards.uris) if upload}
    if named:
        uploads.add_uses(connection, dataset, named)


def check_addresses(
    connection: Connection,
    added: NewShards,
    intake: Intake,
    contents: Mapping[str, str],
    before: NewShards | None = None,
) -> None:
    """Check that each address is permitted and names a file once. Raises Unprocessable.

    Both lists are checked together: a held-out shard that is trained on would measure nothing. Shards `before` were
    checked when they were posted.
    """
    problems: list[FieldProblem] = []
    unusable = {**intake.checked, **_upload_problems(connection, added.uris, intake.principal)}
    seen = {contents.get(uri, uri): uri for uri in (before.uris if before else ())}
    for field, refs in (("shards", added.shards), ("evaluation_shards", added.evaluation_shards)):
        for index, ref in enumerate(refs):
            file = contents.get(ref.uri, ref.uri)
            # A KeyError for an address that was not checked: it must not pass for a permitted one.
            problem = _same_file(ref.uri, seen[file]) if file in seen else unusable[ref.uri]
            if problem:
                problems.append(FieldProblem(f"{field}[{index}].uri", problem, ref.uri))
            seen.setdefault(file, ref.uri)
    if problems:
        raise Unprocessable("an address cannot be used", *problems)


def _upload_problems(
    connection: Connection, uris: Iterable[str], principal: Principal
) -> dict[str, str | None]:
    """By address of an upload: why a dataset cannot name it, or None.

    Uploads that it can name are kept until this transaction ends. One query for any number of them.
    """
    named = {uri: upload_of(uri) for uri in uris if uri.startswith(SCHEME)}
    held = uploads.lock_shared(connection, [name for name in named.values() if name])
    return {
        uri: _upload_problem(uri, held.get(name or ""), principal) for uri, name in named.items()
    }


def _upload_problem(uri: str, found: UploadRow | None, principal: Principal) -> str | None:
    if found is None or found.state == "aborted" or not principal.sees(found.owner):
        return f"there is no upload {uri.removeprefix(SCHEME)!r}"
    if found.state != "complete":
        return f"upload {found.id} is {found.state}; complete it first"
    return None


def _address_problem(uri: str, allowed: tuple[str, ...]) -> str | None:
    try:
        check_allowed(uri, allowed)
    except InvalidUri as error:
        return str(error)
    return None


def _same_file(uri: str, before: str) -> str:
    if uri == before:
        return f"{uri!r} is named twice"
    return f"{uri!r} is the same file as {before!r} (SHA-256)"


def _check_encoders(
    model: ModelRow, posted: NewDataset, declarations: Mapping[str, EncoderSpec]
) -> None:
    """Check the encoders that a dataset declares for its features, and the declarations for raw rows.

    Raises Unprocessable; Conflict if an encoder differs from that of the model's features.
    """
    problems = list(_misnamed(model.spec, posted))
    if problems:
        raise Unprocessable("encoders do not fit the dataset", *problems)
    for modality, identity in posted.encoders.items():
        message = mismatch(model.encoders, {modality: identity})
        if message is not None:
            raise Conflict(message, FieldProblem(f"encoders.{modality}", message))
    for modality, declaration in bound_encoders(model.spec, posted.pair, declarations).items():
        fixed = model.encoders.get(modality)
        if fixed is None or modality in posted.encoders:
            continue
        difference = changed_field(declaration, fixed)
        if difference is not None:
            message = (
                f"the declaration of encoder {declaration.name!r} has changed since it computed the "
                f"features of {modality!r} of model {model.name!r}: {difference}. Ask the operator to "
                "declare it as before, under another name for the new one"
            )
            raise Conflict(message, FieldProblem("model", message, model.name))


def _misnamed(spec: ModelSpec, posted: NewDataset) -> list[FieldProblem]:
    problems = []
    for modality, identity in posted.encoders.items():
        field = f"encoders.{modality}"
        if modality not in posted.pair.modalities:
            message = (
                f"{modality!r} is not in the pair; permitted: {', '.join(posted.pair.modalities)}"
            )
            problems.append(FieldProblem(field, message, modality))
        elif identity.width != spec.widths[modality]:
            message = (
                f"it has width {identity.width}, the model declares {spec.widths[modality]} for "
                f"{modality!r}"
            )
            problems.append(FieldProblem(f"{field}.width", message, identity.width))
    return problems


def bound_encoders(
    spec: ModelSpec, pair: ModalityPair, declarations: Mapping[str, EncoderSpec]
) -> dict[str, EncoderSpec]:
    """Return the declarations by modality of the pair, for modalities that are bound to a declared encoder."""
    names = {modality: spec.modalities[modality].encoder for modality in pair.modalities}
    return {
        modality: declarations[name]
        for modality, name in names.items()
        if name is not None and name in declarations
    }


def mismatch(
    fixed: Mapping[str, EncoderIdentity], found: Mapping[str, EncoderIdentity]
) -> str | None:
    """Return which encoder differs from that of the model's features, and how; None if none does."""
    for modality, identity in found.items():
        difference = identity.difference(fixed[modality]) if modality in fixed else None
        if difference is not None:
            return (
                f"the encoder of {modality!r} is not the one of the model's earlier features: "
                f"{difference}"
            )
    return None


def changed_field(declaration: EncoderSpec, fixed: EncoderIdentity) -> str | None:
    """Return the first field of the declaration that contradicts the identity, in words; None if none does.

    A field without a value takes that of the model or the kind, so it contradicts nothing.
    """
    declared = declaration.model_dump()
    expected = {
        "kind": fixed.kind,
        "takes": fixed.takes,
        "width": fixed.width,
        "revision": fixed.revision,
        **{name: value for name, value in fixed.settings.items() if name in declared},
    }
    if fixed.model is not None and declaration.model is not None:
        names = (declaration.model, PurePath(declaration.model).name)
        if fixed.model not in names:
            return f"model is {names[1]!r}, expected {fixed.model!r}"
    for field, value in expected.items():
        if declared[field] is not None and declared[field] != value:
            return f"{field} is {declared[field]!r}, expected {value!r}"
    return None
