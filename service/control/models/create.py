"""Create a model. Names are one space for all owners; a specification never changes."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from cmcl.contract.methods import BUILT_IN_METHODS, installed_methods
from cmcl.contract.model import ModelSpec
from service.control.lookup import get_model
from service.control.quotas import check_models
from service.database.queries import models
from service.database.rows import ModelRecord
from service.errors import Conflict, FieldProblem, Unprocessable
from service.principal import Principal


@dataclass(frozen=True)
class Created:
    """A model, and whether this request made it."""

    model: ModelRecord
    is_new: bool


def create_model(
    connection: Connection,
    name: str,
    spec: ModelSpec,
    principal: Principal,
    now: datetime,
    most: int,
) -> Created:
    """Create the model, or return the one of that name with the same specification.

    Raises Conflict if it exists otherwise, is another owner's, or the owner has `most` models, and
    Unprocessable for a method that is not installed.
    """
    existing = models.find(connection, name)
    if existing is None:
        check_models(connection, principal.owns_as, most, principal, now)
        _check_method(spec.method)
        models.create(connection, name, principal.owns_as, spec, now)
        return Created(get_model(connection, name, principal), is_new=True)
    check_name_is_ours(existing, principal)
    if existing.spec != spec:
        raise Conflict(
            f"model {name!r} exists with another specification; a model's specification is fixed",
            *_differences(existing.spec, spec),
        )
    return Created(existing, is_new=False)


def _check_method(name: str) -> None:
    if name in BUILT_IN_METHODS or name in (installed := installed_methods()):
        return
    permitted = ", ".join([*BUILT_IN_METHODS, *installed])
    message = f"the method {name!r} is not installed in the service; permitted: {permitted}"
    raise Unprocessable("unknown method", FieldProblem("method", message, name))


def check_name_is_ours(existing: ModelRecord, principal: Principal) -> None:
    """Names are one space for all owners, because object storage has one folder per name."""
    if existing.deleted_at is not None or not principal.sees(existing.owner):
        message = f"the name {existing.name!r} is taken; choose another one"
        raise Conflict(message, FieldProblem("name", message, existing.name))


def _differences(existing: ModelSpec, asked: ModelSpec) -> list[FieldProblem]:
    there, wanted = existing.model_dump(mode="json"), asked.model_dump(mode="json")
    return [
        FieldProblem(field, f"it is {there[field]!r}", wanted[field])
        for field in there
        if there[field] != wanted[field]
    ]
