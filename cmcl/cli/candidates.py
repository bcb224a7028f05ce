"""`cmcl candidate`: trials of a version next to the live one."""

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from cmcl.cli.console import Cell, Columns, fields, say, show, table
from cmcl.cli.options import (
    DEFAULT_URL,
    AsJson,
    ModelName,
    ModelOfVersion,
    Reason,
    Url,
    VersionNumber,
    exact_version,
    from_options,
)
from cmcl.client import Agreement, Canary, Client, Policy
from cmcl.contract.policy import GatePolicy
from cmcl.contract.rollout import CanaryPlan

app = typer.Typer(
    no_args_is_help=True,
    help="Trials: a version serves a share of the callers before it is promoted.",
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
    typer.Option(help="largest share of failures; above it the trial ends; default 0.01"),
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


@app.command("set")
def set_candidate(  # noqa: PLR0913 - each term of a trial is an option
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
    """Start or change a trial of a version. Options that are not given have their defaults."""
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
        trial = client.set_candidate(name, number, plan, reason)
    say(f"{name}: version {trial.version} is on trial ({_shares(trial)})", trial, as_json)


@app.command("show")
def show_candidate(model: ModelName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the version on trial and its comparison with the live version."""
    with Client(url) as client:
        show(client.candidate(model), as_json, _view)


@app.command("end")
def end_candidate(model: ModelName, reason: Reason = "", url: Url = DEFAULT_URL) -> None:
    """End the trial without promoting the version. To promote it, use `cmcl promote`."""
    with Client(url) as client:
        client.end_candidate(model, reason)


@app.command("policy")
def rollout_policy(  # noqa: PLR0913 - each term of a trial is an option
    model: ModelName,
    *,
    publish_as: Annotated[
        str | None, typer.Option(help="release of a new version: live or candidate")
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
    """Show or change how new versions are released: live at once, or on trial first."""
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


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _changed(policy: Policy, terms: dict[str, Any], rule: dict[str, Any]) -> GatePolicy:
    """Return the policy with a changed rollout."""
    kept = policy.model_dump(include=set(GatePolicy.model_fields))
    before = kept["rollout"]
    merged = {**before, **terms, "rule": {**before.get("rule", {}), **rule}}
    return from_options(GatePolicy, {**kept, "rollout": merged})


def _shares(trial: Canary) -> str:
    return f"share {trial.share:g}, shadow {trial.shadow:g}"


_PAIRS: Columns[Agreement] = {
    "queries": lambda each: each.queries,
    "cosine": lambda each: each.cosine,
    "overlap": lambda each: each.overlap,
}


def _view(trial: Canary) -> RenderableType:
    seen = trial.observed
    values: dict[str, Cell] = {
        "version": trial.version,
        "shares": _shares(trial),
        "rule": _rule(trial.rule.model_dump()),
        "started": trial.began_at,
        "by": trial.actor,
        "reason": trial.reason,
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
