"""Models: creation, branches, policy, deletion, and retiring versions.

A branch starts from a version of another model and has all versions up to it, because a version is
measured against those that were learned before; from then on the two models are independent. The
branch gets its own manifests; the files stay in the folder of the original model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from cmcl.contract.methods import BUILT_IN_METHODS, installed_methods
from cmcl.contract.model import ModelSpec
from cmcl.contract.policy import GatePolicy
from service.database.queries import canaries, events, jobs, models, versions
from service.database.rows import BranchPoint, Event, ModelRecord, VersionRecord
from service.errors import Conflict, FieldProblem, PreconditionFailed, Unprocessable
from service.lookup import get_model, get_version
from service.principal import Principal
from service.quotas import check_heads, check_models
from service.registry.canary import end as end_canary
from service.registry.promotion_request import PromotionRequest

# Versions in memory at once. Each has a manifest, which grows with the number of learned datasets.
_PAGE = 10


@dataclass(frozen=True)
class Limits:
    """Limits for a new model: models of its owner, and bytes of a version's heads."""

    models_per_owner: int
    heads_bytes: int


@dataclass(frozen=True)
class Created:
    """A model, and whether this request created it."""

    model: ModelRecord
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
) -> ModelRecord:
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
    _check_can_start(get_version(connection, point.model, point.version, principal))
    check_heads(source.spec, limits.heads_bytes, "version")
    check_models(connection, source.owner, limits.models_per_owner, principal, now)
    models.create(connection, name, source.owner, source.spec, now, point)
    for version in _lineage(connection, point):
        files_in = version.manifest.files_in or version.model
        manifest = version.manifest.model_copy(update={"model": name, "files_in": files_in})
        versions.create_copy(connection, manifest, version, now)
    data = {"from_model": point.model, "from_version": point.version, "actor": principal.name}
    event = Event(kind="model.branched", owner=source.owner, model=name, data=data)
    events.emit(connection, event, now)
    return get_model(connection, name, principal)


def _check_can_start(version: VersionRecord) -> None:
    if version.retired_at is not None:
        raise Conflict(f"version {version.number} of {version.model!r} was retired")
    if version.stored_at is None:
        message = f"version {version.number} of {version.model!r} is still being stored"
        raise Conflict(f"{message}; try again shortly")


def _lineage(connection: Connection, point: BranchPoint) -> Iterator[VersionRecord]:
    """All versions up to the branch point, oldest first, with few manifests in memory at once.

    Manifests must be read because each names its model, so copies differ.
    """
    after = 0
    while after < point.version:
        found = versions.page(connection, point.model, after, min(_PAGE, point.version - after))
        yield from found
        after = found[-1].number


def _check_name_is_ours(existing: ModelRecord, principal: Principal) -> None:
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


def set_policy(
    connection: Connection,
    name: str,
    policy: GatePolicy,
    principal: Principal,
    now: datetime,
    seen_revision: int | None,
) -> ModelRecord:
    """Replace the policy. Raises NotFound, and PreconditionFailed if it was changed since read."""
    models.lock(connection, name)
    model = get_model(connection, name, principal)
    if seen_revision is not None and seen_revision != model.policy_revision:
        raise PreconditionFailed(
            f"the policy of {name!r} now has revision {model.policy_revision}, "
            f"not {seen_revision}; read it again"
        )
    models.set_policy(connection, model, policy, principal.name, now)
    return get_model(connection, name, principal)


def delete_model(connection: Connection, name: str, principal: Principal, now: datetime) -> None:
    """Delete the model. Raises NotFound, and Conflict while one of its jobs has not ended."""
    models.lock(connection, name)
    model = get_model(connection, name, principal)
    if jobs.has_open(connection, name):
        raise Conflict(f"a job of model {name!r} has not ended; cancel it first")
    canary = canaries.running(connection, name)
    if canary is not None:
        end_canary(
            connection,
            model,
            canary,
            "aborted",
            PromotionRequest(principal, "the model was deleted", now),
        )
    models.set_deleted(connection, model, principal.name, now)


def retire_version(
    connection: Connection, name: str, number: int, principal: Principal, now: datetime
) -> None:
    """Retire a version. Raises NotFound, and Conflict for the newest, the live and the canary one."""
    models.lock(connection, name)
    model = get_model(connection, name, principal)
    version = get_version(connection, name, number, principal)
    if number == model.head:
        raise Conflict(
            f"version {number} is the newest of {name!r}: the next one is trained from it"
        )
    if number == model.live_version:
        raise Conflict(f"version {number} of {name!r} is live; promote another one first")
    canary = canaries.running(connection, name)
    if canary is not None and canary.version == number:
        raise Conflict(f"version {number} of {name!r} is the canary; abort it first")
    if version.retired_at is not None:
        return
    models.revise(connection, name, now)
    versions.retire(connection, version, model.owner, principal.name, now)
