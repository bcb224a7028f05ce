"""What the replicas tell of a trial, added up."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy import Connection

from cmcl.contract.rollout import Observed, PairAgreement, RolloutRule
from service.context import Context
from service.database.queries import canaries as trial_rows
from service.database.queries import models
from service.database.rows import CanaryRecord, ModelRecord
from service.principal import RECONCILER
from service.registry import canary, promotion
from service.registry.canary import gather
from service.registry.promotion_request import PromotionRequest
from service.stale_database import check_not_behind


@dataclass(frozen=True)
class Verdict:
    """What becomes of a candidate, and why."""

    outcome: Literal["promoted", "aborted"]
    reason: str


def judge(rule: RolloutRule, observed: Observed) -> Verdict | None:
    """None: the trial goes on. What cannot even be loaded is taken back without waiting."""
    for replica, why in sorted(observed.refused.items()):
        return Verdict("aborted", f"replica {replica} could not load it: {why}")
    if observed.requests < rule.min_requests:
        return None
    for breach in _breaches(rule, observed):
        return Verdict("aborted", breach)
    if rule.promote_after is None or observed.requests < rule.promote_after:
        return None
    if _is_agreement_unknown(rule, observed):
        return None
    reason = (
        f"it broke no bound in {observed.requests} requests (promote_after {rule.promote_after})"
    )
    return Verdict("promoted", reason)


def look(context: Context, trial: CanaryRecord) -> None:
    """Add up what the replicas have told, and do what follows from it. Raises StaleDatabase."""
    observed = gather(context.store, trial)
    verdict = judge(trial.plan.rule, observed)
    if verdict is None and observed == trial.observed:
        return
    if verdict is not None:
        check_not_behind(context, trial.model)
    with context.database.write() as connection:
        model = models.lock(connection, trial.model)
        now = trial_rows.running(connection, trial.model)
        if model is None or model.deleted_at is not None or now is None:
            return
        if (now.revision, now.plan) != (trial.revision, trial.plan):
            # Somebody changed it meanwhile: the next look judges it by what holds now.
            return
        trial_rows.set_observed(connection, trial, observed)
        if verdict is not None:
            request = PromotionRequest(RECONCILER, verdict.reason, context.clock())
            _carry_out(connection, model, replace(trial, observed=observed), verdict, request)


def _carry_out(
    connection: Connection,
    model: ModelRecord,
    trial: CanaryRecord,
    verdict: Verdict,
    request: PromotionRequest,
) -> None:
    if verdict.outcome == "promoted":
        promotion.promote_candidate(connection, model, trial, request)
        return
    canary.end(connection, model, trial, "aborted", request)
    models.revise(connection, model.name, request.now)


def _breaches(rule: RolloutRule, observed: Observed) -> Iterator[str]:
    """Each bound that is broken, in words."""
    if observed.error_share > rule.max_error_share:
        yield (
            f"{observed.failed} of {observed.requests} requests failed because of it "
            f"({observed.error_share:.4g}); permitted (max_error_share): {rule.max_error_share:g}"
        )
    for pair, told in _judged_pairs(rule, observed):
        for name, mean, floor in _bounds(rule, told):
            if mean < floor:
                yield (
                    f"{pair}: mean {name} with the live version is {mean:.4f} in {told.queries} "
                    f"queries; permitted (min_{name}): {floor:g} or more"
                )


def _judged_pairs(rule: RolloutRule, observed: Observed) -> Iterator[tuple[str, PairAgreement]]:
    """Those with as many queries as the candidate must have requests: few may be odd by chance."""
    for pair, told in observed.pairs.items():
        if told.queries >= rule.min_requests:
            yield pair, told


def _bounds(rule: RolloutRule, told: PairAgreement) -> Iterator[tuple[str, float, float]]:
    """Name, mean and floor of each bound on agreement that is set."""
    for name, mean, floor in (
        ("cosine", told.mean_cosine, rule.min_cosine),
        ("overlap", told.mean_overlap, rule.min_overlap),
    ):
        if mean is not None and floor is not None:
            yield name, mean, floor


def _is_agreement_unknown(rule: RolloutRule, observed: Observed) -> bool:
    """Whether a bound is set, and a pair (or all) has too few queries: not measured is not shown."""
    if rule.min_cosine is None and rule.min_overlap is None:
        return False
    judged = sum(1 for _ in _judged_pairs(rule, observed))
    return judged == 0 or judged < len(observed.pairs)
