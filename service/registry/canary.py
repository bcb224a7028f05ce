"""The canary of a model: a version that serves a share of the traffic beside the live one.

Replicas write observations under the revision of live.json that announced the canary. So where other callers get the
canary, or the live version changes, its observations so far are closed and it continues under the next revision. A
changed rule applies to past observations as well. Every function here needs the model locked by the caller's
transaction.
"""

import logging
from dataclasses import replace

from pydantic import ValidationError
from sqlalchemy import Connection

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.rollout import CanaryPlan, Observation, Observed, PairAgreement
from service.database.queries import canaries, events, models
from service.database.rows import (
    CanaryOutcome,
    CanaryRecord,
    Event,
    ModelRecord,
    PromotionKind,
    VersionRecord,
)
from service.errors import Conflict, NotFound
from service.registry.promotion_request import PromotionRequest, lock_as_seen, servable_version
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)


def get_canary(connection: Connection, model: str) -> CanaryRecord:
    """Return the canary of the model. Raises NotFound."""
    found = canaries.running(connection, model)
    if found is None:
        raise NotFound(f"model {model!r} has no canary")
    return found


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
    if running is None or running.version != version:
        return begin(connection, current, found, plan, request)
    if plan != running.plan:
        _change(connection, current, running, plan, request)
    return get_canary(connection, model)


def abort(connection: Connection, model: str, request: PromotionRequest) -> None:
    """End the canary; the version is kept. Raises NotFound and PreconditionFailed."""
    current = lock_as_seen(connection, model, request)
    end(connection, current, get_canary(connection, model), "aborted", request)
    models.revise(connection, model, request.now)


def begin(
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
        end(connection, model, running, "aborted", replace(request, reason=because))
    canary = CanaryRecord(
        model=model.name,
        revision=model.live_revision + 1,
        version=version.number,
        plan=plan,
        reason=request.reason,
        actor=request.principal.name,
        began_at=request.now,
        observed=Observed(),
    )
    canaries.add(connection, canary)
    models.revise(connection, model.name, request.now)
    _emit(connection, model, canary, "began", request)
    return canary


def end(
    connection: Connection,
    model: ModelRecord,
    canary: CanaryRecord,
    outcome: CanaryOutcome,
    request: PromotionRequest,
) -> None:
    """End the canary. The caller sets the next revision."""
    canaries.end(connection, canary, outcome, request.reason, request.now)
    _emit(connection, model, canary, outcome, request)


def follow_live(
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
        end(connection, model, canary, "promoted", request)
    elif kind == "published":
        because = f"version {version.number} was published"
        end(connection, model, canary, "aborted", replace(request, reason=because))
    else:
        because = f"version {version.number} is live now; it is compared with that one"
        _restart(connection, model, canary, replace(request, reason=because))


def _change(
    connection: Connection,
    model: ModelRecord,
    canary: CanaryRecord,
    plan: CanaryPlan,
    request: PromotionRequest,
) -> None:
    changed = replace(canary, plan=plan, reason=request.reason, actor=request.principal.name)
    seen_by = (canary.plan.share, canary.plan.shadow)
    if (plan.share, plan.shadow) != seen_by:
        _restart(connection, model, changed, request)
        models.revise(connection, model.name, request.now)
        return
    canaries.set_rule(connection, changed)
    _emit(connection, model, changed, "changed", request)


def _restart(
    connection: Connection, model: ModelRecord, canary: CanaryRecord, request: PromotionRequest
) -> None:
    """Continue the canary under the next revision, without observations."""
    end(connection, model, canary, "changed", request)
    canaries.add(connection, replace(canary, revision=model.live_revision + 1, observed=Observed()))


def _emit(
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
        kind=f"candidate.{kind}",
        owner=model.owner,
        model=model.name,
        version=canary.version,
        data=data,
    )
    events.emit(connection, emitted, request.now)


def gather(store: ObjectStore, canary: CanaryRecord) -> Observed:
    """Sum the last observation of every replica, also of those that have gone."""
    found: dict[str, Observation] = {}
    unreadable: dict[str, str] = {}
    for key in store.keys(layout.observations(canary.model, canary.revision)):
        try:
            observation = _read(store, key, canary)
        except ObjectNotFound:
            # Removed after it was listed; the next round reads what replaced it.
            continue
        except ValueError as error:
            unreadable[key] = str(error)
            if key not in canary.observed.unreadable:
                logger.warning("an observation was ignored: %s", error)
            continue
        before = found.get(observation.replica)
        if before is None or before.at < observation.at:
            found[observation.replica] = observation
    return _sum(list(found.values()), unreadable)


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


def _read(store: ObjectStore, key: str, canary: CanaryRecord) -> Observation:
    """Read an observation. Raises ObjectNotFound, and ValueError if it is not of this canary."""
    try:
        observation = Observation.model_validate_json(store.read(key))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key} cannot be read: {where or 'JSON'}: {first['msg']}") from error
    if (observation.version, observation.revision) != (canary.version, canary.revision):
        raise ValueError(
            f"{key} is of version {observation.version} since revision {observation.revision}, the canary is version "
            f"{canary.version} since revision {canary.revision}"
        )
    return observation


def _sum(observations: list[Observation], unreadable: dict[str, str]) -> Observed:
    pairs: dict[str, PairAgreement] = {}
    for each in observations:
        for pair, agreement in each.pairs.items():
            pairs[pair] = pairs.get(pair, PairAgreement()) + agreement
    return Observed(
        replicas=len(observations),
        answered=sum(each.answered for each in observations),
        failed=sum(each.failed for each in observations),
        shadowed=sum(each.shadowed for each in observations),
        refused={each.replica: each.refused for each in observations if each.refused is not None},
        pairs=dict(sorted(pairs.items())),
        unreadable=unreadable,
        at=max((each.at for each in observations), default=None),
    )
