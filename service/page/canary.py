"""The canary of a model: how it compares with the live version, what its rule decides when, and earlier ones.

People start it, change it and abort it; each action has a confirmation page.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from cmcl.contract.policy import CanaryPlan, RolloutRule
from cmcl.pictures import Bound, Share, share_bars
from service.api.canary import (
    CanaryChoice,
    CanaryRunView,
    choose_canary,
    delete_canary,
    list_canaries,
)
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.models import read_model, read_policy
from service.api.pagination import CursorQuery, get_number_seek
from service.api.summaries import read_summary
from service.api.versions import list_versions
from service.context import Context
from service.database.seek import Seek
from service.errors import Refused
from service.page.comparison import compare_versions
from service.page.forms import (
    ActionRequest,
    ReadingTrainer,
    ReasonForm,
    Version,
    confirmed,
    posted,
    see_other,
    validated,
)
from service.page.rendering import PREFIX, Figure, figure, pages_of
from service.principal import Principal
from service.registry.promotion import canary_tag

router = APIRouter(prefix=PREFIX + "/models/{model}/canary")

_LISTED = 10
# Versions that the form offers, the newest ones.
_OFFERED = 100
Percent = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True)
class Check:
    """A bound of the rule beside what was observed. `kind`: how the values are written.

    `met` is None while too little was observed.
    """

    label: str
    term: str
    kind: Literal["share", "number"]
    is_minimum: bool
    permitted: float | None
    found: float | None
    met: bool | None


@dataclass(frozen=True)
class Judgement:
    """What the rule says of a canary now, and when it says more."""

    checks: list[Check]
    is_judged: bool
    # Seconds until there are enough requests to judge it, and to promote it; None: not known, or never.
    until_judged: float | None
    until_promoted: float | None
    # Requests in an hour, since it started or its shares changed.
    hourly: float | None
    lowest_overlap: tuple[str, float] | None
    # Pairs without enough queries.
    lacking: list[str]
    # Whether a bound on agreement is set that cannot be checked yet: nothing is promoted before.
    is_held_up: bool


@router.get("")
def canary_page(
    request: Request,
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    cursor: CursorQuery = None,
) -> Response:
    """The canary that runs, and those that have ended."""
    summary = read_summary(model, principal, context)
    running = running_canary(model, principal, context)
    # One more, because the running one is not shown again.
    seek = get_number_seek(cursor, "desc", _LISTED)
    listed = list_canaries(model, principal, context, seek)
    return pages_of(request).render(
        request,
        "canary.html",
        model=summary,
        canary=running,
        judgement=_judgement(running, context.clock()) if running else None,
        agreement=_agreement(running) if running and running.observed.pairs else None,
        rollout=read_policy(model, principal, context, Response()).rollout,
        ended=[each for each in listed.items if each.ended_at is not None],
        next_cursor=listed.next_cursor,
        is_first=cursor is None,
    )


def running_canary(model: str, principal: Principal, context: Context) -> CanaryRunView | None:
    """The canary of the model, if one runs."""
    newest = list_canaries(model, principal, context, Seek(None, "desc", 1)).items
    return next((each for each in newest if each.ended_at is None), None)


def _judgement(canary: CanaryRunView, now: datetime) -> Judgement:
    rule, observed = canary.rule, canary.observed
    lacking = [pair for pair, each in observed.pairs.items() if each.queries < rule.min_requests]
    is_bounded = rule.min_cosine is not None or rule.min_overlap is not None
    is_held_up = is_bounded and (bool(lacking) or not observed.pairs)
    seconds = ((observed.at or now) - canary.started_at).total_seconds()
    rate = observed.requests / seconds if seconds > 0 else 0.0

    def until(requests: int | None) -> float | None:
        if requests is None or not rate:
            return None
        return max(0.0, requests - observed.requests) / rate

    overlaps = [
        (pair, each.overlap) for pair, each in observed.pairs.items() if each.overlap is not None
    ]
    return Judgement(
        checks=list(_checks(canary)),
        is_judged=observed.requests >= rule.min_requests,
        until_judged=until(rule.min_requests),
        until_promoted=None if is_held_up else until(_promoted_from(rule)),
        hourly=3600 * rate if rate else None,
        lowest_overlap=min(overlaps, key=lambda each: each[1], default=None),
        lacking=lacking,
        is_held_up=is_held_up,
    )


def _promoted_from(rule: RolloutRule) -> int | None:
    return None if rule.promote_after is None else max(rule.promote_after, rule.min_requests)


def _checks(canary: CanaryRunView) -> Iterator[Check]:
    rule, observed = canary.rule, canary.observed
    errors = observed.error_share if observed.requests else None
    yield Check(
        label="Failed requests",
        term="error_share",
        kind="share",
        is_minimum=False,
        permitted=rule.max_error_share,
        found=errors,
        met=None if errors is None else errors <= rule.max_error_share,
    )
    # A bound holds for each pair that has enough queries, so the lowest one decides.
    pairs = observed.pairs.values()
    judged = [each for each in pairs if each.queries >= rule.min_requests]
    for label, term, permitted in (
        ("Lowest cosine of a pair", "cosine", rule.min_cosine),
        ("Lowest overlap of a pair", "overlap", rule.min_overlap),
    ):
        values = [getattr(each, term) for each in judged or pairs]
        found = min((value for value in values if value is not None), default=None)
        met = None
        if judged and permitted is not None and found is not None:
            met = found >= permitted
        yield Check(
            label=label,
            term=term,
            kind="share" if term == "overlap" else "number",
            is_minimum=True,
            permitted=permitted,
            found=found,
            met=met,
        )


def _agreement(canary: CanaryRunView) -> Figure:
    smallest = canary.rule.min_overlap
    bound = None
    if smallest is not None:
        bound = Bound(smallest, f"at least {100 * smallest:g} %", is_minimum=True)
    rows = [
        Share(pair.replace("--", " and "), each.overlap, f"{each.queries:,} queries")
        for pair, each in canary.observed.pairs.items()
    ]
    title = "Ten best results in common with the live version, by pair"
    return figure(lambda width: share_bars(title, rows, bound, width=width))


class AbortForm(ReasonForm):
    """The canary that was seen."""

    version: Version


class CanaryForm(ReasonForm):
    """The plan of a canary, and the canary that was seen (empty: none). Shares are in percent."""

    seen_canary: str = ""
    version: Version
    share: Percent = 0.0
    shadow: Percent = 0.0
    min_requests: int | None = None
    promote_after: int | None = None
    max_error_share: Percent | None = None
    min_cosine: float | None = None
    min_overlap: Percent | None = None

    def choice(self) -> CanaryChoice:
        """The body of the request. Raises RequestValidationError."""
        rule = {
            "min_requests": self.min_requests,
            "promote_after": self.promote_after,
            "max_error_share": _share(self.max_error_share),
            "min_cosine": self.min_cosine,
            "min_overlap": _share(self.min_overlap),
        }
        values = {
            "version": self.version,
            "share": self.share / 100,
            "shadow": self.shadow / 100,
            "reason": self.reason,
            "rule": {name: value for name, value in rule.items() if value is not None},
        }
        return validated(CanaryChoice, values)


@router.get("/start")
def confirm_canary(
    request: Request,
    model: ModelPath,
    principal: ReadingTrainer,
    context: ContextDep,
    version: Version | None = None,
) -> Response:
    """The form of a canary: which version, which traffic, and what ends it."""
    return _canary_page(ActionRequest(request, principal, context), model, version)


@router.post("/start")
def start_canary(
    request: Request,
    model: ModelPath,
    form: Annotated[CanaryForm, posted(CanaryForm)],
    principal: ReadingTrainer,
    context: ContextDep,
) -> Response:
    """Start the canary, or change its plan."""
    choice = form.choice()
    return confirmed(
        lambda: choose_canary(model, choice, principal, context, form.seen, form.seen_canary),
        lambda: see_other(request, f"models/{model}/canary", "canary-started"),
        lambda error: _canary_page(
            ActionRequest(request, principal, context), model, form.version, error
        ),
    )


@router.get("/abort")
def confirm_abort(
    request: Request, model: ModelPath, principal: ReadingTrainer, context: ContextDep
) -> Response:
    """Say what ending the canary means."""
    return _abort_page(ActionRequest(request, principal, context), model)


@router.post("/abort")
def abort(
    request: Request,
    model: ModelPath,
    form: Annotated[AbortForm, posted(AbortForm)],
    principal: ReadingTrainer,
    context: ContextDep,
) -> Response:
    """End the canary."""
    return confirmed(
        lambda: delete_canary(model, principal, context, form.reason, form.version, form.seen),
        lambda: see_other(request, f"models/{model}/canary", "canary-aborted"),
        lambda error: _abort_page(ActionRequest(request, principal, context), model, error),
    )


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _canary_page(
    asked: ActionRequest,
    model: str,
    version: int | None,
    changed: Refused | None = None,
) -> Response:
    found = read_model(model, asked.principal, asked.context)
    newest = list_versions(
        model, asked.principal, asked.context, Seek(None, "desc", _OFFERED)
    ).items
    offered = [
        each
        for each in newest
        if each.stored_at and not each.retired_at and each.version != found.live_version
    ]
    chosen = version or next((each.version for each in offered), None)
    live = found.live_version
    running = running_canary(model, asked.principal, asked.context)
    return asked.page(
        "confirm_canary.html",
        changed,
        model=found,
        offered=offered,
        chosen=chosen,
        comparison=compare_versions(model, live, chosen, asked.principal, asked.context)
        if live and chosen
        else None,
        canary=running,
        seen_canary=_tag(running) if running else "",
        is_possible=live is not None and bool(offered),
    )


def _tag(canary: CanaryRunView) -> str:
    plan = CanaryPlan.model_validate(canary, from_attributes=True)
    return canary_tag(canary.revision, plan)


def _abort_page(
    asked: ActionRequest,
    model: str,
    changed: Refused | None = None,
) -> Response:
    canary = running_canary(model, asked.principal, asked.context)
    return asked.page(
        "confirm_abort.html",
        changed,
        model=read_model(model, asked.principal, asked.context),
        canary=canary,
        is_possible=canary is not None,
    )
