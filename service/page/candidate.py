"""A candidate that waits for a decision: its certificate beside its parent's, and what approving it changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from cmcl.contract.policy import GatePolicy
from service.api.candidates import read_candidate
from service.api.dependencies import ContextDep, JobPath, Reader
from service.api.jobs import JobView, read_job
from service.api.models import read_model, read_policy
from service.api.summaries import ModelSummary, read_summary
from service.context import Context
from service.page.comparison import WantedDep, comparison_values
from service.page.explanations import REASONS
from service.page.forms import see_other
from service.page.rendering import PREFIX, is_fragment, pages_of
from service.principal import Principal
from service.states import JobState

router = APIRouter(prefix=PREFIX)


@dataclass(frozen=True)
class BoundText:
    """How a bound of the policy is shown: what it limits, and whether as a share or in points."""

    label: str
    term: str
    is_minimum: bool


BOUNDS: Mapping[str, BoundText] = {
    "max_drift": BoundText("Largest drift of an earlier dataset", "drift", False),
    "min_backward_transfer": BoundText(
        "Mean change of R@1 of earlier datasets", "mean_change", True
    ),
    "min_gain": BoundText("Gain of R@1 on the new dataset", "gain", True),
}


@dataclass(frozen=True)
class Decision:
    """What a person can decide, and what follows."""

    can_approve: bool
    can_reject: bool
    newest: int | None
    live: int | None
    canary: int | None
    waiting: int
    policy: GatePolicy
    # Days for which the files of a rejected candidate are kept.
    kept_days: float


@router.get("/jobs/{job}/candidate")
def candidate_page(
    request: Request, job: JobPath, principal: Reader, context: ContextDep, wanted: WantedDep
) -> Response:
    """The candidate of a job beside its parent."""
    of_job = read_job(job, principal, context)
    if of_job.state == JobState.PUBLISHED and not is_fragment(request):
        return see_other(request, f"models/{of_job.model}/versions/{of_job.version}")
    summary = read_summary(of_job.model, principal, context)
    values: dict[str, Any] = {"candidate": None}
    # It may be published while the page is open.
    if of_job.state != JobState.PUBLISHED:
        candidate = read_candidate(job, principal, context)
        bound = next(each.permitted for each in candidate.bounds if each.name == "max_drift")
        values = {
            "candidate": candidate,
            "bound": bound,
            "decision": decision_of(of_job, summary, principal, context),
            **comparison_values(candidate.datasets, wanted, bound, candidate.seconds),
        }
    return pages_of(request).render(
        request,
        "candidate.html",
        job=of_job,
        model=summary,
        spec=read_model(of_job.model, principal, context),
        bound_texts=BOUNDS,
        reasons=REASONS,
        **values,
    )


def decision_of(
    job: JobView, model: ModelSummary, principal: Principal, context: Context
) -> Decision:
    """What can be decided about the candidate of a job of the model."""
    newest = model.newest.version if model.newest else None
    is_held = job.state == JobState.HELD
    return Decision(
        # A version starts from the one before it.
        can_approve=is_held or (job.state == JobState.REJECTED and job.parent_version == newest),
        can_reject=is_held,
        newest=newest,
        live=model.live_version,
        canary=model.canary,
        waiting=model.jobs.waiting,
        policy=read_policy(job.model, principal, context, Response()),
        kept_days=context.settings.rejected_kept_days,
    )
