"""A version on trial beside the one that answers: begun, changed, ended.

What the replicas observe lies under the revision of live.json that told them of the trial. So where
other callers see the candidate, or it is compared with another version, what was observed before is
closed and the trial goes on under the next revision. Other bounds hold for what was observed already.
Every function here has the model locked, and all it does is one transaction of the caller.
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
from workers.storage.port import ObjectStore

logger = logging.getLogger(__name__)


def get_trial(connection: Connection, model: str) -> CanaryRecord:
    """The one that runs. Raises NotFound."""
    found = canaries.running(connection, model)
    if found is None:
        raise NotFound(f"no version of model {model!r} is on trial")
    return found


def set_candidate(
    connection: Connection, model: str, version: int, plan: CanaryPlan, request: PromotionRequest
) -> CanaryRecord:
    """A user puts a version on trial, or changes the trial. Raises as `promote.choose` does.

    Another version that is on trial is taken back.
    """
    current = lock_as_seen(connection, model, request)
    found = servable_version(connection, model, version, request.principal)
    if current.live_version is None:
        raise Conflict(f"no version of {model!r} answers yet, so there is nothing to compare with")
    if current.live_version == version:
        raise Conflict(f"version {version} of {model!r} answers already; permitted: another one")
    running = canaries.running(connection, model)
    if running is None or running.version != version:
        return begin(connection, current, found, plan, request)
    if plan != running.plan:
        _change(connection, current, running, plan, request)
    return get_trial(connection, model)


def take_back(connection: Connection, model: str, request: PromotionRequest) -> None:
    """A user ends the trial; the version stays. Raises NotFound and PreconditionFailed."""
    current = lock_as_seen(connection, model, request)
    end(connection, current, get_trial(connection, model), "aborted", request)
    models.revise(connection, model, request.now)


def begin(
    connection: Connection,
    model: ModelRecord,
    version: VersionRecord,
    plan: CanaryPlan,
    request: PromotionRequest,
) -> CanaryRecord:
    """The version is tried from now on, instead of whichever was before."""
    running = canaries.running(connection, model.name)
    if running is not None:
        because = f"version {version.number} is tried instead"
        end(connection, model, running, "aborted", replace(request, reason=because))
    trial = CanaryRecord(
        model=model.name,
        revision=model.live_revision + 1,
        version=version.number,
        plan=plan,
        reason=request.reason,
        actor=request.principal.name,
        began_at=request.now,
        observed=Observed(),
    )
    canaries.add(connection, trial)
    models.revise(connection, model.name, request.now)
    _emit(connection, model, trial, "began", request)
    return trial


def end(
    connection: Connection,
    model: ModelRecord,
    trial: CanaryRecord,
    outcome: CanaryOutcome,
    request: PromotionRequest,
) -> None:
    """It is over, for that reason. The caller makes the next revision."""
    canaries.end(connection, trial, outcome, request.reason, request.now)
    _emit(connection, model, trial, outcome, request)


def follow_live(
    connection: Connection,
    model: ModelRecord,
    version: VersionRecord,
    kind: PromotionKind,
    request: PromotionRequest,
) -> None:
    """What becomes of the trial where that version answers from the next revision on."""
    trial = canaries.running(connection, model.name)
    if trial is None:
        return
    if trial.version == version.number:
        end(connection, model, trial, "promoted", request)
    elif kind == "published":
        because = f"version {version.number} was published"
        end(connection, model, trial, "aborted", replace(request, reason=because))
    else:
        because = f"version {version.number} answers now; it is compared with that one"
        _go_on(connection, model, trial, replace(request, reason=because))


def _change(
    connection: Connection,
    model: ModelRecord,
    trial: CanaryRecord,
    plan: CanaryPlan,
    request: PromotionRequest,
) -> None:
    changed = replace(trial, plan=plan, reason=request.reason, actor=request.principal.name)
    seen_by = (trial.plan.share, trial.plan.shadow)
    if (plan.share, plan.shadow) != seen_by:
        _go_on(connection, model, changed, request)
        models.revise(connection, model.name, request.now)
        return
    canaries.set_rule(connection, changed)
    _emit(connection, model, changed, "changed", request)


def _go_on(
    connection: Connection, model: ModelRecord, trial: CanaryRecord, request: PromotionRequest
) -> None:
    """Under the next revision, with nothing observed."""
    end(connection, model, trial, "changed", request)
    canaries.add(connection, replace(trial, revision=model.live_revision + 1, observed=Observed()))


def _emit(
    connection: Connection,
    model: ModelRecord,
    trial: CanaryRecord,
    kind: str,
    request: PromotionRequest,
) -> None:
    told = {
        "reason": request.reason,
        "actor": request.principal.name,
        "share": trial.plan.share,
        "shadow": trial.plan.shadow,
        "observed": figures(trial.observed),
    }
    event = Event(
        kind=f"candidate.{kind}",
        owner=model.owner,
        model=model.name,
        version=trial.version,
        data=told,
    )
    events.emit(connection, event, request.now)


def gather(store: ObjectStore, trial: CanaryRecord) -> Observed:
    """The sum of what every replica has told last, also of one that is gone since."""
    found: dict[str, Observation] = {}
    unreadable: dict[str, str] = {}
    for key in store.keys(layout.observations(trial.model, trial.revision)):
        try:
            told = _read(store, key, trial)
        except ObjectNotFound:
            # It was listed, and is gone: the next look finds what took its place.
            continue
        except ValueError as error:
            unreadable[key] = str(error)
            if key not in trial.observed.unreadable:
                logger.warning("an observation is left out: %s", error)
            continue
        before = found.get(told.replica)
        if before is None or before.at < told.at:
            found[told.replica] = told
    return _sum(list(found.values()), unreadable)


def figures(observed: Observed) -> dict[str, object]:
    """For people and events: shares and means instead of sums."""
    return {
        **observed.model_dump(mode="json", exclude={"pairs"}),
        "requests": observed.requests,
        "error_share": observed.error_share,
        "pairs": {
            pair: {
                "queries": told.queries,
                "cosine": told.mean_cosine,
                "overlap": told.mean_overlap,
            }
            for pair, told in observed.pairs.items()
        },
    }


def _read(store: ObjectStore, key: str, trial: CanaryRecord) -> Observation:
    """Raises ObjectNotFound, and ValueError in words if it tells nothing of this trial."""
    try:
        told = Observation.model_validate_json(store.read(key))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key} cannot be read: {where or 'JSON'}: {first['msg']}") from error
    if (told.version, told.revision) != (trial.version, trial.revision):
        raise ValueError(
            f"{key} tells of version {told.version} since revision {told.revision}, on trial is "
            f"version {trial.version} since revision {trial.revision}"
        )
    return told


def _sum(told: list[Observation], unreadable: dict[str, str]) -> Observed:
    pairs: dict[str, PairAgreement] = {}
    for each in told:
        for pair, agreement in each.pairs.items():
            pairs[pair] = pairs.get(pair, PairAgreement()) + agreement
    return Observed(
        replicas=len(told),
        answered=sum(each.answered for each in told),
        failed=sum(each.failed for each in told),
        shadowed=sum(each.shadowed for each in told),
        refused={each.replica: each.refused for each in told if each.refused is not None},
        pairs=dict(sorted(pairs.items())),
        unreadable=unreadable,
        at=max((each.at for each in told), default=None),
    )
