"""Models: as they are posted, creation, branches, gate, deletion, and retiring versions.

A branch starts from a version of another model and has all versions up to it, because a version is
measured against those that were learned before; from then on the two models are independent. The
branch gets its own manifests; the files stay in the folder of the original model.

A modality can be added at any time. Each head is a function of its own seed before its first dataset, so that the heads
of other modalities, and the versions that exist, stay as they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from sqlalchemy import Connection

from cmcl.contract.encoder import EncoderName, EncoderSpec, FeatureWidth
from cmcl.contract.methods import BUILT_IN_METHODS, installed_methods
from cmcl.contract.modality import Frozen, Modality, ModelName
from cmcl.contract.model import (
    Gate,
    ModalitySpec,
    ModelOptions,
    ModelSpec,
    as_modality,
    check_two_modalities,
)
from service.auth.ownership import check_heads, check_models, get_model, get_version
from service.core.errors import Conflict, FieldProblem, PreconditionFailed, Unprocessable
from service.core.principal import Principal
from service.database.queries import events, job_queue, models, versions
from service.database.rows import BranchPoint, Event, ModelRow, VersionRow
from service.registry.promotion import PromotionRequest, lock_as_seen


@dataclass(frozen=True)
class Limits:
    """Limits for a new model: models of its owner, and bytes of a version's heads."""

    models_per_owner: int | None
    heads_bytes: int


class NewModality(Frozen):
    """One modality of a new model. A number alone is short for its width."""

    width: FeatureWidth | None = Field(
        default=None, description="of its features; by default that of its encoder"
    )
    encoder: EncoderName | None = Field(
        default=None,
        description="declared encoder that computes its features (GET /v1/encoders), for datasets and queries "
        "of raw items; null: features alone",
    )
    aligned_to: Modality | None = Field(
        default=None,
        description="modality of the same items by another encoder, whose embeddings its head reproduces; null: none",
    )


def problem_of(
    field: str, modality: NewModality, encoders: Mapping[str, EncoderSpec]
) -> FieldProblem | None:
    """Return what keeps a model from having the modality; None if nothing does."""
    if modality.encoder is None:
        if modality.width is not None:
            return None
        return FieldProblem(field, "it has neither a width nor an encoder: give one of them")
    found = encoders.get(modality.encoder)
    if found is None:
        permitted = ", ".join(sorted(encoders)) or "none, the operator has declared no encoder"
        message = f"there is no encoder {modality.encoder!r}; permitted: {permitted}"
        return FieldProblem(f"{field}.encoder", message, modality.encoder)
    if modality.width not in (None, found.width):
        message = (
            f"encoder {found.name!r} has width {found.width}, got {modality.width}; leave it out"
        )
        return FieldProblem(f"{field}.width", message, modality.width)
    return None


def modality_of(modality: NewModality, encoders: Mapping[str, EncoderSpec]) -> ModalitySpec:
    """The modality with its width. It must have no problem."""
    width = modality.width or encoders[modality.encoder or ""].width
    return ModalitySpec(width=width, encoder=modality.encoder, aligned_to=modality.aligned_to)


@dataclass(frozen=True)
class Added:
    """A modality to add to a model, and the declared encoders."""

    name: Modality
    modality: NewModality
    encoders: Mapping[str, EncoderSpec]


def add_modality(
    connection: Connection,
    model: str,
    added: Added,
    principal: Principal,
    now: datetime,
    limits: Limits,
) -> ModelRow:
    """Add a modality to a model; the same one again changes nothing.

    Raises NotFound; Unprocessable for an encoder that is not declared, or if replicas could not hold the heads; Conflict
    if the model has the modality with another width or encoder.
    """
    models.lock(connection, model)
    found = get_model(connection, model, principal)
    field = "encoder" if added.modality.encoder is not None else "width"
    problem = problem_of("modality", added.modality, added.encoders)
    if problem is not None:
        raise Unprocessable("the modality cannot be used", problem)
    wanted = modality_of(added.modality, added.encoders)
    known = found.spec.modalities.get(added.name)
    if known == wanted:
        return found
    if known is not None:
        message = (
            f"model {model!r} has the modality {added.name!r} with width {known.width} and "
            f"{f'encoder {known.encoder!r}' if known.encoder else 'no encoder'}, aligned to "
            f"{known.aligned_to or 'none'}; choose another name"
        )
        raise Conflict(message, FieldProblem(field, message))
    try:
        document = found.spec.model_dump()
        document["modalities"][added.name] = wanted
        spec = ModelSpec.model_validate(document)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise Unprocessable(message, FieldProblem("modality", message)) from error
    check_heads(spec, limits.heads_bytes, field)
    models.add_modality(connection, found, spec, added.name, principal.name, now)
    return get_model(connection, model, principal)


# Versions in memory at once. Each has a manifest, which grows with the number of learned datasets.
_PAGE = 10


class NewModel(ModelOptions):
    """A model as it is posted: a name and a specification."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "street-scenes",
                    "modalities": {"image": {"encoder": "clip-image"}, "text": 384},
                    "width": 256,
                }
            ]
        }
    )

    name: ModelName
    modalities: Annotated[
        dict[Modality, Annotated[NewModality, BeforeValidator(as_modality)]],
        Field(min_length=2, max_length=64),
        BeforeValidator(check_two_modalities),
    ]

    def spec(self, encoders: Mapping[str, EncoderSpec]) -> ModelSpec:
        """The specification, with every width. Raises Unprocessable for an encoder that is not declared."""
        problems = [
            problem
            for name, modality in self.modalities.items()
            if (problem := problem_of(f"modalities.{name}", modality, encoders)) is not None
        ]
        if problems:
            raise Unprocessable("a modality cannot be used", *problems)
        modalities = {
            name: modality_of(modality, encoders) for name, modality in self.modalities.items()
        }
        try:
            options = self.model_dump(exclude={"name", "modalities"})
            return ModelSpec(modalities=modalities, **options)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise Unprocessable(message, FieldProblem("modalities", message)) from error


@dataclass(frozen=True)
class Created:
    """A model, and whether this request created it."""

    model: ModelRow
    is_new: bool


def create_model(
    connection: Connection,
    name: str,
    spec: ModelSpec,
    principal: Principal,
    now: datetime,
    limits: Limits,
) -> Created:
    """Create the model, or return the existing one if its specification is the same.

    Raises Conflict if it exists with another specification, belongs to another owner, or the owner has
    too many models, and Unprocessable if replicas could not hold its versions.
    The method must have passed `check_method`.
    """
    existing = models.find(connection, name)
    if existing is None:
        check_heads(spec, limits.heads_bytes, "modalities")
        check_models(connection, principal.owns_as, limits.models_per_owner, principal, now)
        models.create(connection, name, principal.owns_as, spec, now)
        return Created(get_model(connection, name, principal), is_new=True)
    _check_name_is_ours(existing, principal)
    if existing.spec != spec:
        raise Conflict(
            f"model {name!r} exists with another specification; a model's specification is fixed",
            *_differences(existing.spec, spec),
        )
    return Created(existing, is_new=False)


def check_method(name: str) -> None:
    """Raises Unprocessable for a method that is not installed.

    Call outside a transaction: it may read the metadata of all installed packages.
    """
    if name in BUILT_IN_METHODS or name in (installed := installed_methods()):
        return
    permitted = ", ".join([*BUILT_IN_METHODS, *installed])
    message = f"the method {name!r} is not installed in the service; permitted: {permitted}"
    raise Unprocessable("unknown method", FieldProblem("method", message, name))


def branch(
    connection: Connection,
    name: str,
    point: BranchPoint,
    principal: Principal,
    now: datetime,
    limits: Limits,
) -> ModelRow:
    """Create a branch; the same request again returns the existing model.

    Raises NotFound, Conflict if the name is taken or the owner has too many models, and Unprocessable
    if replicas could not hold its versions.
    """
    existing = models.find(connection, name)
    if existing is not None:
        _check_name_is_ours(existing, principal)
        if existing.branched_from != point:
            message = f"model {name!r} exists but is not a branch of version {point.version} of "
            message += repr(point.model)
            raise Conflict(message, FieldProblem("name", message, name))
        return existing
    source = get_model(connection, point.model, principal)
    start = get_version(connection, point.model, point.version, principal)
    _check_can_start(start)
    check_heads(source.spec, limits.heads_bytes, "version")
    check_models(connection, source.owner, limits.models_per_owner, principal, now)
    models.create(connection, name, source.owner, source.spec, now, point)
    models.set_encoders(connection, name, start.manifest.encoders)
    for version in _lineage(connection, point):
        versions.create_copy(connection, version.manifest.as_in_branch(name), version, now)
    data = {"from_model": point.model, "from_version": point.version, "actor": principal.name}
    event = Event(kind="model.branched", owner=source.owner, model=name, data=data)
    events.emit(connection, event, now)
    return get_model(connection, name, principal)


def _check_can_start(version: VersionRow) -> None:
    if version.retired_at is not None:
        raise Conflict(f"version {version.number} of {version.model!r} was retired")
    if version.stored_at is None:
        message = f"version {version.number} of {version.model!r} is still being stored"
        raise Conflict(f"{message}; try again shortly")


def _lineage(connection: Connection, point: BranchPoint) -> Iterator[VersionRow]:
    """All versions up to the branch point, oldest first, with few manifests in memory at once.

    Manifests must be read because each names its model, so copies differ.
    """
    after = 0
    while after < point.version:
        found = versions.page(connection, point.model, after, min(_PAGE, point.version - after))
        yield from found
        after = found[-1].number


def _check_name_is_ours(existing: ModelRow, principal: Principal) -> None:
    """All owners share one namespace, because object storage has one folder per name."""
    if existing.deleted_at is not None or not principal.sees(existing.owner):
        message = f"the name {existing.name!r} is taken; choose another one"
        raise Conflict(message, FieldProblem("name", message, existing.name))


def _differences(existing: ModelSpec, requested: ModelSpec) -> list[FieldProblem]:
    current, wanted = existing.model_dump(mode="json"), requested.model_dump(mode="json")
    return [
        FieldProblem(field, f"it is {current[field]!r}", wanted[field])
        for field in current
        if current[field] != wanted[field]
    ]


def set_gate(
    connection: Connection,
    name: str,
    gate: Gate,
    principal: Principal,
    now: datetime,
    seen_revision: int | None,
) -> ModelRow:
    """Replace the gate. Raises NotFound, and PreconditionFailed if it was changed since read."""
    models.lock(connection, name)
    model = get_model(connection, name, principal)
    if seen_revision is not None and seen_revision != model.gate_revision:
        raise PreconditionFailed(
            f"the gate of {name!r} now has revision {model.gate_revision}, "
            f"not {seen_revision}; read it again"
        )
    models.set_gate(connection, model, gate, principal.name, now)
    return get_model(connection, name, principal)


def delete_model(connection: Connection, name: str, principal: Principal, now: datetime) -> None:
    """Delete the model. Raises NotFound, and Conflict while one of its jobs has not ended."""
    models.lock(connection, name)
    model = get_model(connection, name, principal)
    if job_queue.has_open(connection, name):
        raise Conflict(f"a job of model {name!r} has not ended; cancel it first")
    models.set_deleted(connection, model, principal.name, now)


def retire_version(
    connection: Connection, name: str, number: int, request: PromotionRequest
) -> None:
    """Retire a version.

    Raises NotFound, PreconditionFailed, and Conflict for the newest and the live one.
    """
    model = lock_as_seen(connection, name, request)
    version = get_version(connection, name, number, request.principal)
    if number == model.head:
        raise Conflict(
            f"version {number} is the newest of {name!r}: the next one is trained from it"
        )
    if number == model.live_version:
        raise Conflict(f"version {number} of {name!r} is live; promote another one first")
    if version.retired_at is not None:
        return
    models.revise(connection, name, request.now)
    versions.retire(connection, version, model.owner, request.principal.name, request.now)
