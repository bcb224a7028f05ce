"""Promotions, rollbacks and canaries: checks and state changes."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from cmcl.contract.rollout import CanaryPlan
from service.database.queries import models, versions
from service.database.rows import (
    CanaryRecord,
    ModelRecord,
    PromotionKind,
    PromotionRecord,
    VersionRecord,
)
from service.errors import Conflict
from service.principal import RECONCILER
from service.registry import canary
from service.registry.promotion_request import PromotionRequest, lock_as_seen, servable_version


@dataclass(frozen=True)
class Live:
    """The live version, and its generation: the number of promotions."""

    version: int
    generation: int


def choose(connection: Connection, model: str, version: int, request: PromotionRequest) -> Live:
    """Promote a version. Raises NotFound, PreconditionFailed, and Conflict if it cannot be served.

    Promoting the live version changes nothing.
    """
    current = lock_as_seen(connection, model, request)
    found = servable_version(connection, model, version, request.principal)
    if current.live_version == version:
        return Live(version, current.live_generation)
    return _move_live(connection, current, found, "promoted", request)


def roll_back(connection: Connection, model: str, request: PromotionRequest) -> Live:
    """Return to the version that was promoted before the live one.

    Raises NotFound, PreconditionFailed, and Conflict where there is none.
    """
    current = lock_as_seen(connection, model, request)
    now = versions.promotion(connection, model, current.live_generation)
    if now is None or now.returns_to is None:
        raise Conflict(f"model {model!r} has no earlier promotion to return to")
    then = versions.promotion(connection, model, now.returns_to)
    if then is None:
        raise RuntimeError(f"model {model!r} has no promotion {now.returns_to}")
    found = servable_version(connection, model, then.version, request.principal)
    return _move_live(connection, current, found, "rolled_back", request, then.returns_to)


def begin_published(connection: Connection, version: VersionRecord, now: datetime) -> bool:
    """Make a stored version live, or the canary, as the policy says. Return whether it is live.

    The first version of a model is always made live: there is none to compare it with.
    """
    current = models.lock(connection, version.model)
    if current is None:
        return False
    request, policy = PromotionRequest(RECONCILER, "published", now), current.policy.rollout
    if policy.publish_as == "candidate" and current.live_version is not None:
        plan = CanaryPlan.model_validate(policy.model_dump(exclude={"publish_as"}))
        canary.begin(connection, current, version, plan, request)
        return False
    _move_live(connection, current, version, "published", request)
    return True


def promote_canary(
    connection: Connection,
    model: ModelRecord,
    canary_record: CanaryRecord,
    request: PromotionRequest,
) -> None:
    """Promote the canary; with the model locked."""
    found = servable_version(connection, model.name, canary_record.version, request.principal)
    _move_live(connection, model, found, "promoted", request)


def _move_live(
    connection: Connection,
    model: ModelRecord,
    version: VersionRecord,
    kind: PromotionKind,
    request: PromotionRequest,
    returns_to: int | None = None,
) -> Live:
    """Make the version live under the next generation, and record who asked for it and why."""
    generation = model.live_generation + 1
    if kind != "rolled_back":
        returns_to = model.live_generation or None
    promotion = PromotionRecord(
        model=model.name,
        generation=generation,
        version=version.number,
        previous=model.live_version,
        kind=kind,
        returns_to=returns_to,
        reason=request.reason,
        actor=request.principal.name,
        created_at=request.now,
    )
    canary.follow_live(connection, model, version, kind, request)
    models.set_live(connection, model.name, version.number, generation, request.now)
    versions.add_promotion(connection, promotion, version, model.owner)
    return Live(version.number, generation)
