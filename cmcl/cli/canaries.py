"""`cmcl canary`: a version that serves a share of the callers beside the live one."""

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from cmcl.cli.console import Cell, Columns, fields, say, show, show_all, table
from cmcl.cli.options import (
    DEFAULT_URL,
    AsJson,
    ListOrder,
    ModelName,
    ModelOfVersion,
    MostItems,
    Reason,
    Url,
    VersionNumber,
    exact_version,
    from_options,
)
from cmcl.client import Agreement, Canary, CanaryRun, Client, Policy
from cmcl.contract.policy import CanaryPlan, GatePolicy

app = typer.Typer(
    no_args_is_help=True,
    help="Canaries: versions that serve a share of the callers before they are promoted.",
)

Share = Annotated[
    float | None, typer.Option(help="share of callers that the version serves, 0 to 1")
]
Shadow = Annotated[
    float | None, typer.Option(help="share of the live version's requests scored in shadow, 0 to 1")
]
MinRequests = Annotated[
    int | None, typer.Option(help="requests before the version is judged; default 100")
]
MaxErrorShare = Annotated[
    float | None,
    typer.Option(help="largest share of failures; above it the canary is aborted; default 0.01"),
]
MinCosine = Annotated[
    float | None, typer.Option(help="smallest mean cosine with the live version's scores, per pair")
]
MinOverlap = Annotated[
    float | None, typer.Option(help="smallest mean overlap of both versions' ten best, per pair")
]
PromoteAfter = Annotated[
    int | None, typer.Option(help="requests after which to promote; by default never")
]


@app.command("start")
def start_canary(  # noqa: PLR0913 - each term of a canary is an option
    model: ModelOfVersion,
    version: VersionNumber = None,
    *,
    share: Share = None,
    shadow: Shadow = None,
    min_requests: MinRequests = None,
    max_error_share: MaxErrorShare = None,
    min_cosine: MinCosine = None,
    min_overlap: MinOverlap = None,
    promote_after: PromoteAfter = None,
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Start a canary, or change its plan. Options that are not given have their defaults."""
    name, number = exact_version(model, version)
    rule = _given(
        min_requests=min_requests,
        max_error_share=max_error_share,
        min_cosine=min_cosine,
        min_overlap=min_overlap,
        promote_after=promote_after,
    )
    plan = from_options(CanaryPlan, {**_given(share=share, shadow=shadow), "rule": rule})
    with Client(url) as client:
        canary = client.start_canary(name, number, plan, reason)
    say(f"{name}: version {canary.version} is a canary ({_shares(canary)})", canary, as_json)


@app.command("show")
def show_canary(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the canary and its comparison with the live version."""
    with Client(url) as client:
        show(client.canary(model), as_json, _view)


@app.command("abort")
def abort_canary(model: ModelName, reason: Reason = "", url: Url = DEFAULT_URL) -> None:
    """End the canary without promoting its version. To promote it, use `cmcl promote`."""
    with Client(url) as client:
        client.abort_canary(model, reason)


@app.command("policy")
def rollout_policy(  # noqa: PLR0913 - each term of a canary is an option
    model: ModelName,
    *,
    publish_as: Annotated[
        str | None, typer.Option(help="release of a new version: live or canary")
    ] = None,
    share: Share = None,
    shadow: Shadow = None,
    min_requests: MinRequests = None,
    max_error_share: MaxErrorShare = None,
    min_cosine: MinCosine = None,
    min_overlap: MinOverlap = None,
    promote_after: PromoteAfter = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show or change how new versions are released: live at once, or as a canary first."""
    terms = _given(publish_as=publish_as, share=share, shadow=shadow)
    rule = _given(
        min_requests=min_requests,
        max_error_share=max_error_share,
        min_cosine=min_cosine,
        min_overlap=min_overlap,
        promote_after=promote_after,
    )
    with Client(url) as client:
        policy = client.policy(model)
        if terms or rule:
            policy = client.set_policy(model, _changed(policy, terms, rule), policy.revision)
    show(policy, as_json, _policy_view)


@app.command("list")
def list_canaries(
    model: ModelName,
    order: ListOrder = "asc",
    limit: MostItems = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the canaries of a model, also ended ones, with outcome and reason."""
    with Client(url) as client:
        hint = (
            f"model {model} has not had a canary yet; start one: cmcl canary start {model}@VERSION"
        )
        show_all(client.canaries(model, order), as_json, _RUNS, hint, limit)


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _changed(policy: Policy, terms: dict[str, Any], rule: dict[str, Any]) -> GatePolicy:
    """Return the policy with a changed rollout."""
    kept = policy.model_dump(include=set(GatePolicy.model_fields))
    before = kept["rollout"]
    merged = {**before, **terms, "rule": {**before.get("rule", {}), **rule}}
    return from_options(GatePolicy, {**kept, "rollout": merged})


def _shares(canary: Canary) -> str:
    return f"share {canary.share:g}, shadow {canary.shadow:g}"


_RUNS: Columns[CanaryRun] = {
    "version": lambda run: run.version,
    "shares": _shares,
    "requests": lambda run: run.observed.requests,
    "failed": lambda run: run.observed.error_share,
    "started": lambda run: run.started_at,
    "ended": lambda run: run.ended_at,
    "outcome": lambda run: run.outcome,
    "reason": lambda run: run.ended_because or run.reason,
}
_PAIRS: Columns[Agreement] = {
    "queries": lambda each: each.queries,
    "cosine": lambda each: each.cosine,
    "overlap": lambda each: each.overlap,
}


def _view(canary: Canary) -> RenderableType:
    seen = canary.observed
    values: dict[str, Cell] = {
        "version": canary.version,
        "shares": _shares(canary),
        "rule": _rule(canary.rule.model_dump()),
        "started": canary.started_at,
        "by": canary.actor,
        "reason": canary.reason,
        "requests": f"{seen.requests} ({seen.answered} answered, {seen.shadowed} shadowed, "
        f"{seen.failed} failed) on {seen.replicas} replicas",
        "failed share": seen.error_share,
        "load errors": ", ".join(f"{replica}: {why}" for replica, why in seen.refused.items()),
    }
    pairs = [
        Group(fields({}, title=pair), table([agreement], _PAIRS))
        for pair, agreement in seen.pairs.items()
    ]
    return Group(fields(values), *pairs)


def _policy_view(policy: Policy) -> RenderableType:
    rollout = policy.rollout
    return fields(
        {
            "publish as": rollout.get("publish_as"),
            "share": rollout.get("share"),
            "shadow": rollout.get("shadow"),
            "rule": _rule(rollout.get("rule", {})),
        }
    )


def _rule(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
