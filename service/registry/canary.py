"""Judging a canary: what the replicas observed decides whether it continues, ends, or becomes live.

Several replicas of the control plane may judge it at once, and any of them may die: a decision is one transaction,
which finds the canary as it was judged or does nothing.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ValidationError
from sqlalchemy import Connection

from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.policy import Observation, Observed, PairAgreement, RolloutRule
from service.context import Context
from service.database.queries import canaries, models
from service.database.rows import CanaryRecord, ModelRecord
from service.principal import RECONCILER
from service.registry.promotion import PromotionRequest, end_canary, promote_canary
from service.stale_database import check_not_behind
from workers.storage import layout
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Verdict:
    """How a canary ends, and why."""

    outcome: Literal["promoted", "aborted"]
    reason: str


def judge(rule: RolloutRule, observed: Observed) -> Verdict | None:
    """Judge a canary; None if it continues. One that a replica cannot load is aborted at once."""
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


def judge_canary(context: Context, canary: CanaryRecord) -> None:
    """Sum the observations, and end the canary if the rule says so. Raises StaleDatabase."""
    observed = gather(context.store, canary)
    verdict = judge(canary.plan.rule, observed)
    if verdict is None and observed == canary.observed:
        return
    if verdict is not None:
        check_not_behind(context, canary.model)
    with context.database.write() as connection:
        model = models.lock(connection, canary.model)
        now = canaries.running(connection, canary.model)
        if model is None or model.deleted_at is not None or now is None:
            return
        if (now.revision, now.plan) != (canary.revision, canary.plan):
            # It was changed in between; the next round judges it by the new plan.
            return
        canaries.set_observed(connection, canary, observed)
        if verdict is not None:
            request = PromotionRequest(RECONCILER, verdict.reason, context.clock())
            _apply(connection, model, replace(canary, observed=observed), verdict, request)


def _apply(
    connection: Connection,
    model: ModelRecord,
    canary: CanaryRecord,
    verdict: Verdict,
    request: PromotionRequest,
) -> None:
    if verdict.outcome == "promoted":
        promote_canary(connection, model, canary, request)
        return
    end_canary(connection, model, canary, "aborted", request)
    models.revise(connection, model.name, request.now)


def _breaches(rule: RolloutRule, observed: Observed) -> Iterator[str]:
    """A message for each bound that is broken."""
    if observed.error_share > rule.max_error_share:
        yield (
            f"{observed.failed} of {observed.requests} requests failed because of it "
            f"({observed.error_share:.4g}); permitted (max_error_share): {rule.max_error_share:g}"
        )
    for pair, agreement in _judged_pairs(rule, observed):
        for name, mean, floor in _bounds(rule, agreement):
            if mean < floor:
                yield (
                    f"{pair}: mean {name} with the live version is {mean:.4f} in {agreement.queries} "
                    f"queries; permitted (min_{name}): {floor:g} or more"
                )


def _judged_pairs(rule: RolloutRule, observed: Observed) -> Iterator[tuple[str, PairAgreement]]:
    """Pairs with at least `min_requests` queries: fewer may deviate by chance."""
    for pair, agreement in observed.pairs.items():
        if agreement.queries >= rule.min_requests:
            yield pair, agreement


def _bounds(rule: RolloutRule, agreement: PairAgreement) -> Iterator[tuple[str, float, float]]:
    """Name, mean and minimum of each bound on agreement that is set."""
    for name, mean, floor in (
        ("cosine", agreement.mean_cosine, rule.min_cosine),
        ("overlap", agreement.mean_overlap, rule.min_overlap),
    ):
        if mean is not None and floor is not None:
            yield name, mean, floor


def _is_agreement_unknown(rule: RolloutRule, observed: Observed) -> bool:
    """Return whether a bound is set and a pair, or all, has too few queries to be judged."""
    if rule.min_cosine is None and rule.min_overlap is None:
        return False
    judged = sum(1 for _ in _judged_pairs(rule, observed))
    return judged == 0 or judged < len(observed.pairs)
