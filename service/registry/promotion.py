"""Somebody wants another version to answer, or to be tried: who, why, and whether it can."""

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
    """Which version answers, and since how many promotions."""

    version: int
    generation: int


def choose(connection: Connection, model: str, version: int, request: PromotionRequest) -> Live:
    """A user promotes a version. Raises NotFound, PreconditionFailed, and Conflict if it cannot.

    Choosing the version that answers already changes nothing.
    """
    current = lock_as_seen(connection, model, request)
    found = servable_version(connection, model, version, request.principal)
    if current.live_version == version:
        return Live(version, current.live_generation)
    return _move_live(connection, current, found, "promoted", request)


def roll_back(connection: Connection, model: str, request: PromotionRequest) -> Live:
    """Back to the version that was promoted before the one that answers.

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
    """A new version's files are in place: it answers, or is tried, as the policy says.

    Whether it answers. Before the first version there is nothing to try one against.
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


def promote_candidate(
    connection: Connection, model: ModelRecord, trial: CanaryRecord, request: PromotionRequest
) -> None:
    """The version on trial has shown what it must; with the model locked."""
    found = servable_version(connection, model.name, trial.version, request.principal)
    _move_live(connection, model, found, "promoted", request)


def _move_live(
    connection: Connection,
    model: ModelRecord,
    version: VersionRecord,
    kind: PromotionKind,
    request: PromotionRequest,
    returns_to: int | None = None,
) -> Live:
    """Let the version answer, under the next generation, and remember who wanted it and why."""
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
