"""Modalities of models: as they are posted, and added to a model that exists.

A modality can be added at any time. Each head is a function of its own seed before its first dataset, so that the heads
of other modalities, and the versions that exist, stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import Field, ValidationError
from sqlalchemy import Connection

from cmcl.contract.encoder import EncoderName, EncoderSpec, FeatureWidth
from cmcl.contract.modality import Frozen, Modality
from cmcl.contract.model import ModalitySpec, ModelSpec
from service.auth.ownership import check_heads, get_model
from service.core.errors import Conflict, FieldProblem, Unprocessable
from service.core.principal import Principal
from service.database.queries import models
from service.database.rows import ModelRow


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
    return ModalitySpec(width=width, encoder=modality.encoder)


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
            f"{f'encoder {known.encoder!r}' if known.encoder else 'no encoder'}; choose another name"
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
