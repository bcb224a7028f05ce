"""What a model serves: promotions, rollbacks, and the canary, a version that serves a share of the traffic.

Replicas write observations under the revision of live.json that announced the canary. So where other callers get the
canary, or the live version changes, its observations so far are closed and it continues under the next revision. A
changed rule applies to past observations as well. Every function that takes a `ModelRecord` needs the model locked by
the caller's transaction.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from cmcl.contract.policy import CanaryPlan, Observed
from service.database.queries import canaries, events, jobs, models, versions
from service.database.rows import (
    CanaryOutcome,
    CanaryRecord,
    Event,
    ModelRecord,
    PromotionKind,
    PromotionRecord,
    VersionRecord,
)
from service.errors import Conflict, NotFound, PreconditionFailed
from service.lookup import get_model, get_version
from service.principal import RECONCILER, Principal


@dataclass(frozen=True)
class PromotionRequest:
    """Who asks, why, what they have seen (None: not stated), and the traceparent of a traced request.

    `seen_canary`: the `canary_tag` of the canary that ran, empty if none did. The generation does not change with it.
    """

    principal: Principal
    reason: str
    now: datetime
    seen_generation: int | None = None
    traceparent: str | None = None
    seen_canary: str | None = None


def lock_as_seen(connection: Connection, model: str, request: PromotionRequest) -> ModelRecord:
    """Lock the model, and check that it is as the request has seen it. Raises NotFound, PreconditionFailed."""
    models.lock(connection, model)
    current = get_model(connection, model, request.principal)
    if request.seen_generation is not None and request.seen_generation != current.live_generation:
        raise PreconditionFailed(
            f"generation {current.live_generation} of {model!r} is live (version "
            f"{current.live_version}), not generation {request.seen_generation}; read it again"
        )
    return current


def servable_version(
    connection: Connection, model: str, version: int, principal: Principal
) -> VersionRecord:
    """Return the version if its files are stored and it is not retired. Raises NotFound and Conflict."""
    found = get_version(connection, model, version, principal)
    if found.stored_at is None:
        raise Conflict(f"version {version} of {model!r} is still being stored; try again shortly")
    if found.retired_at is not None:
        raise Conflict(f"version {version} of {model!r} was retired and can no longer be served")
    return found


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
    if policy.publish_as == "canary" and current.live_version is not None:
        plan = CanaryPlan.model_validate(policy.model_dump(exclude={"publish_as"}))
        _begin_canary(connection, current, version, plan, request)
        return False
    _move_live(connection, current, version, "published", request)
    return True


def promote_canary(
    connection: Connection,
    model: ModelRecord,
    canary: CanaryRecord,
    request: PromotionRequest,
) -> None:
    """Promote the canary; with the model locked."""
    found = servable_version(connection, model.name, canary.version, request.principal)
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
    _follow_live(connection, model, version, kind, request)
    cause = _cause(connection, version, request)
    models.set_live(connection, model.name, version.number, generation, request.now, cause)
    versions.add_promotion(connection, promotion, version, model.owner)
    return Live(version.number, generation)


def _cause(connection: Connection, version: VersionRecord, request: PromotionRequest) -> str | None:
    """Return the traceparent of the request; of the version's job where the reconciler promotes it."""
    if request.principal is not RECONCILER or version.job is None:
        return request.traceparent
    job = jobs.find(connection, version.job)
    return None if job is None else job.traceparent


def get_canary(connection: Connection, model: str) -> CanaryRecord:
    """Return the canary of the model. Raises NotFound."""
    found = canaries.running(connection, model)
    if found is None:
        raise NotFound(f"model {model!r} has no canary")
    return found


def canary_tag(revision: int, plan: CanaryPlan) -> str:
    """What identifies a canary and its plan: a change of either changes it."""
    return f"{revision} {plan.model_dump_json()}"


def set_canary(
    connection: Connection, model: str, version: int, plan: CanaryPlan, request: PromotionRequest
) -> CanaryRecord:
    """Start a canary, or change its plan. Another canary of the model is aborted. Raises as `promotion.choose`."""
    current = lock_as_seen(connection, model, request)
    found = servable_version(connection, model, version, request.principal)
    if current.live_version is None:
        raise Conflict(f"model {model!r} has no live version to compare with")
    if current.live_version == version:
        raise Conflict(f"version {version} of {model!r} is live; choose another one")
    running = canaries.running(connection, model)
    tag = canary_tag(running.revision, running.plan) if running else ""
    if request.seen_canary not in (None, tag):
        now = f"v{running.version}, as {running.actor} set it," if running else "no version"
        raise PreconditionFailed(f"{now} is the canary of {model!r} by now; read it again")
    if running is None or running.version != version:
        return _begin_canary(connection, current, found, plan, request)
    if plan != running.plan:
        _change_canary(connection, current, running, plan, request)
    return get_canary(connection, model)


def abort_canary(
    connection: Connection, model: str, request: PromotionRequest, version: int | None = None
) -> None:
    """End the canary, if it is that version; None: any. The version is kept. Raises NotFound and PreconditionFailed."""
    current = lock_as_seen(connection, model, request)
    canary = get_canary(connection, model)
    if version is not None and version != canary.version:
        raise PreconditionFailed(
            f"the canary of {model!r} is version {canary.version}, not version {version}; read it again"
        )
    end_canary(connection, current, canary, "aborted", request)
    models.revise(connection, model, request.now, request.traceparent)


def _begin_canary(
    connection: Connection,
    model: ModelRecord,
    version: VersionRecord,
    plan: CanaryPlan,
    request: PromotionRequest,
) -> CanaryRecord:
    """Start a canary, and abort the one before it."""
    running = canaries.running(connection, model.name)
    if running is not None:
        because = f"version {version.number} is the canary instead"
        end_canary(connection, model, running, "aborted", replace(request, reason=because))
    canary = CanaryRecord(
        model=model.name,
        revision=model.live_revision + 1,
        version=version.number,
        plan=plan,
        reason=request.reason,
        actor=request.principal.name,
        started_at=request.now,
        observed=Observed(),
    )
    canaries.add(connection, canary)
    models.revise(connection, model.name, request.now, _cause(connection, version, request))
    _emit_canary(connection, model, canary, "started", request)
    return canary


def end_canary(
    connection: Connection,
    model: ModelRecord,
    canary: CanaryRecord,
    outcome: CanaryOutcome,
    request: PromotionRequest,
) -> None:
    """End the canary. The caller sets the next revision."""
    canaries.end(connection, canary, outcome, request.reason, request.now)
    _emit_canary(connection, model, canary, outcome, request)


def _follow_live(
    connection: Connection,
    model: ModelRecord,
    version: VersionRecord,
    kind: PromotionKind,
    request: PromotionRequest,
) -> None:
    """End or continue the canary when a version becomes live."""
    canary = canaries.running(connection, model.name)
    if canary is None:
        return
    if canary.version == version.number:
        end_canary(connection, model, canary, "promoted", request)
    elif kind == "published":
        because = f"version {version.number} was published"
        end_canary(connection, model, canary, "aborted", replace(request, reason=because))
    else:
        because = f"version {version.number} is live now; it is compared with that one"
        _restart_canary(connection, model, canary, replace(request, reason=because))


def _change_canary(
    connection: Connection,
    model: ModelRecord,
    canary: CanaryRecord,
    plan: CanaryPlan,
    request: PromotionRequest,
) -> None:
    changed = replace(canary, plan=plan, reason=request.reason, actor=request.principal.name)
    seen_by = (canary.plan.share, canary.plan.shadow)
    if (plan.share, plan.shadow) != seen_by:
        _restart_canary(connection, model, changed, request)
        models.revise(connection, model.name, request.now, request.traceparent)
        return
    canaries.set_rule(connection, changed)
    _emit_canary(connection, model, changed, "changed", request)


def _restart_canary(
    connection: Connection, model: ModelRecord, canary: CanaryRecord, request: PromotionRequest
) -> None:
    """Continue the canary under the next revision, without observations."""
    end_canary(connection, model, canary, "changed", request)
    revision, now = model.live_revision + 1, request.now
    continued = replace(canary, revision=revision, started_at=now, observed=Observed())
    canaries.add(connection, continued)


def _emit_canary(
    connection: Connection,
    model: ModelRecord,
    canary: CanaryRecord,
    kind: str,
    request: PromotionRequest,
) -> None:
    data = {
        "reason": request.reason,
        "actor": request.principal.name,
        "share": canary.plan.share,
        "shadow": canary.plan.shadow,
        "observed": figures(canary.observed),
    }
    emitted = Event(
        kind=f"canary.{kind}",
        owner=model.owner,
        model=model.name,
        version=canary.version,
        data=data,
    )
    events.emit(connection, emitted, request.now)


def figures(observed: Observed) -> dict[str, object]:
    """Shares and means instead of sums, for the API and for events."""
    return {
        **observed.model_dump(mode="json", exclude={"pairs"}),
        "requests": observed.requests,
        "error_share": observed.error_share,
        "pairs": {
            pair: {
                "queries": agreement.queries,
                "cosine": agreement.mean_cosine,
                "overlap": agreement.mean_overlap,
            }
            for pair, agreement in observed.pairs.items()
        },
    }
