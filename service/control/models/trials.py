"""A version on trial beside the one that answers: begun, changed, ended.

What the replicas observe lies under the revision of live.json that told them of the trial. So where
other callers see the candidate, or it is compared with another version, what was observed before is
closed and the trial goes on under the next revision. Other bounds hold for what was observed already.
Every function here has the model locked, and all it does is one transaction of the caller.
"""

from dataclasses import replace

from sqlalchemy import Connection

from cmcl.contract.rollout import Observed, TrialPlan
from service.control.models.observed import figures
from service.control.models.wish import Wish, as_seen, that_can_answer
from service.database.queries import events, models, trials
from service.database.rows import (
    Happening,
    ModelRecord,
    PromotionKind,
    TrialOutcome,
    TrialRecord,
    VersionRecord,
)
from service.errors import Conflict, NotFound


def get_trial(connection: Connection, model: str) -> TrialRecord:
    """The one that runs. Raises NotFound."""
    found = trials.running(connection, model)
    if found is None:
        raise NotFound(f"no version of model {model!r} is on trial")
    return found


def set_candidate(
    connection: Connection, model: str, version: int, plan: TrialPlan, wish: Wish
) -> TrialRecord:
    """A user puts a version on trial, or changes the trial. Raises as `promote.choose` does.

    Another version that is on trial is taken back.
    """
    current = as_seen(connection, model, wish)
    found = that_can_answer(connection, model, version, wish.principal)
    if current.live_version is None:
        raise Conflict(f"no version of {model!r} answers yet, so there is nothing to compare with")
    if current.live_version == version:
        raise Conflict(f"version {version} of {model!r} answers already; permitted: another one")
    running = trials.running(connection, model)
    if running is None or running.version != version:
        return begin(connection, current, found, plan, wish)
    if plan != running.plan:
        _change(connection, current, running, plan, wish)
    return get_trial(connection, model)


def take_back(connection: Connection, model: str, wish: Wish) -> None:
    """A user ends the trial; the version stays. Raises NotFound and PreconditionFailed."""
    current = as_seen(connection, model, wish)
    end(connection, current, get_trial(connection, model), "taken_back", wish)
    models.revise(connection, model, wish.now)


def begin(
    connection: Connection, model: ModelRecord, version: VersionRecord, plan: TrialPlan, wish: Wish
) -> TrialRecord:
    """The version is tried from now on, instead of whichever was before."""
    running = trials.running(connection, model.name)
    if running is not None:
        because = f"version {version.number} is tried instead"
        end(connection, model, running, "taken_back", replace(wish, reason=because))
    trial = TrialRecord(
        model=model.name,
        revision=model.live_revision + 1,
        version=version.number,
        plan=plan,
        reason=wish.reason,
        actor=wish.principal.name,
        began_at=wish.now,
        observed=Observed(),
    )
    trials.add(connection, trial)
    models.revise(connection, model.name, wish.now)
    _tell(connection, model, trial, "began", wish)
    return trial


def end(
    connection: Connection,
    model: ModelRecord,
    trial: TrialRecord,
    outcome: TrialOutcome,
    wish: Wish,
) -> None:
    """It is over, for that reason. The caller makes the next revision."""
    trials.end(connection, trial, outcome, wish.reason, wish.now)
    _tell(connection, model, trial, outcome, wish)


def follow_live(
    connection: Connection,
    model: ModelRecord,
    version: VersionRecord,
    kind: PromotionKind,
    wish: Wish,
) -> None:
    """What becomes of the trial where that version answers from the next revision on."""
    trial = trials.running(connection, model.name)
    if trial is None:
        return
    if trial.version == version.number:
        end(connection, model, trial, "promoted", wish)
    elif kind == "published":
        because = f"version {version.number} was published"
        end(connection, model, trial, "taken_back", replace(wish, reason=because))
    else:
        because = f"version {version.number} answers now; it is compared with that one"
        _go_on(connection, model, trial, replace(wish, reason=because))


def _change(
    connection: Connection, model: ModelRecord, trial: TrialRecord, plan: TrialPlan, wish: Wish
) -> None:
    changed = replace(trial, plan=plan, reason=wish.reason, actor=wish.principal.name)
    seen_by = (trial.plan.share, trial.plan.shadow)
    if (plan.share, plan.shadow) != seen_by:
        _go_on(connection, model, changed, wish)
        models.revise(connection, model.name, wish.now)
        return
    trials.set_rule(connection, changed)
    _tell(connection, model, changed, "changed", wish)


def _go_on(connection: Connection, model: ModelRecord, trial: TrialRecord, wish: Wish) -> None:
    """Under the next revision, with nothing observed."""
    end(connection, model, trial, "changed", wish)
    trials.add(connection, replace(trial, revision=model.live_revision + 1, observed=Observed()))


def _tell(
    connection: Connection, model: ModelRecord, trial: TrialRecord, kind: str, wish: Wish
) -> None:
    told = {
        "reason": wish.reason,
        "actor": wish.principal.name,
        "share": trial.plan.share,
        "shadow": trial.plan.shadow,
        "observed": figures(trial.observed),
    }
    happening = Happening(
        kind=f"candidate.{kind}",
        owner=model.owner,
        model=model.name,
        version=trial.version,
        data=told,
    )
    events.tell(connection, happening, wish.now)
