"""The canary of a model: how it compares with the live version, what its rule decides when, and earlier ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cmcl.pictures import Bound, Share, share_bars
from service.api.canary import CanaryRunView, list_canaries
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.models import read_policy
from service.api.pagination import CursorQuery, get_number_seek
from service.api.summaries import read_summary
from service.context import Context
from service.database.seek import Seek
from service.page.rendering import PREFIX, Figure, figure, pages_of
from service.principal import Principal

router = APIRouter(prefix=PREFIX)

_LISTED = 10


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
    # Requests in an hour, since it started.
    hourly: float | None
    lowest_overlap: tuple[str, float] | None
    # Pairs without enough queries: nothing is promoted before their agreement is known.
    unknown: list[str]


@router.get("/models/{model}/canary")
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
        until_promoted=until(rule.promote_after),
        hourly=3600 * rate if rate else None,
        lowest_overlap=min(overlaps, key=lambda each: each[1], default=None),
        unknown=_unknown(canary),
    )


def _unknown(canary: CanaryRunView) -> list[str]:
    rule = canary.rule
    if rule.min_cosine is None and rule.min_overlap is None:
        return []
    pairs = canary.observed.pairs.items()
    return [pair for pair, each in pairs if each.queries < rule.min_requests]


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
