"""Jobs: the list, and one job with what it does, waits for, or failed of.

Its attempts have their outcomes, where the time went, and the end of a log. A candidate that waits for a decision, or was
rejected, is shown beside its parent. Cancelling, retrying, approving and rejecting
have a confirmation page each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from cmcl.contract.api.events import Event
from cmcl.contract.api.jobs import Attempt, Candidate, Job, JobState
from cmcl.contract.errors import StorageUnavailable
from cmcl.pictures import job_phases
from service.api import jobs
from service.api.dependencies import ContextDep, JobPath, Reader, Reason
from service.api.events import read_page
from service.api.models import read_summary
from service.context import Context
from service.core.errors import Conflict, NotFound, Rejected
from service.core.principal import Principal
from service.core.states import CANCELLABLE, IN_FLIGHT
from service.database.engine import Seek
from service.database.queries.events import EventFilter
from service.page.comparison import comparison_values
from service.page.explanations import PHASES
from service.page.forms import (
    ActionRequest,
    DecisionForm,
    ModelFilter,
    SeenForm,
    StateFilter,
    TrainersAction,
    confirmed,
    posted,
    see_other,
)
from service.page.lists import JOBS, WantedQuery, find
from service.page.rendering import PREFIX, TWO_THIRDS, figure, pages_of

router = APIRouter(prefix=PREFIX)

_MOST_EVENTS = 50
# The states of a job that ends well, in their order.
STEPS = (
    JobState.QUEUED,
    JobState.PREPARING,
    JobState.PREPARED,
    JobState.RUNNING,
    JobState.GATING,
    JobState.PUBLISHED,
)
# For a job that measures a dataset and makes no version.
_STEPS_OF_EVALUATION = (*STEPS[: STEPS.index(JobState.RUNNING) + 1], JobState.EVALUATED)
_WAITING = (JobState.QUEUED, JobState.PREPARED)
MOVING = frozenset({*IN_FLIGHT, JobState.PREPARING}) - {JobState.HELD}

_LISTED_ATTEMPTS = 20


class Step(BaseModel):
    """A state on the way of a job, and whether it is behind the job or the present one."""

    state: JobState
    is_passed: bool = False
    is_present: bool = False


@router.get("/jobs")
def jobs_page(
    request: Request,
    principal: Reader,
    context: ContextDep,
    wanted: WantedQuery,
    model: ModelFilter = None,
    state: StateFilter = None,
) -> Response:
    """Jobs, the newest first."""
    where = {"owner": principal.owner, "model": model, "state": state}
    found = find(context, JOBS, where, wanted)
    return pages_of(request).render(
        request,
        "jobs.html",
        jobs=jobs.list_jobs(principal, context, found.seek).items,
        found=found,
        model=model,
        state=state,
        moving=MOVING,
    )


@router.get("/jobs/{job}")
def job_page(request: Request, job: JobPath, principal: Reader, context: ContextDep) -> Response:
    """One job."""
    found = jobs.read_job(job, principal, context)
    events = _events(found, principal, context)
    attempts = attempts_of(found, principal, context)
    phases = jobs.read_phases(job, principal, context).phases
    try:
        candidate = _candidate(found, principal, context)
    except StorageUnavailable:
        # The job can be followed without it.
        candidate = None
    bound = None
    if candidate is not None:
        bound = next(each.permitted for each in candidate.bounds if each.name == "max_drift")
    return pages_of(request).render(
        request,
        "job.html",
        job=found,
        model=read_summary(found.model, principal, context),
        is_waiting=found.state in _WAITING and not found.dry_run,
        events=events,
        steps=_steps(found, events),
        moving=MOVING,
        phases=PHASES,
        attempts=attempts,
        time=figure(lambda width: job_phases(phases, width=width), TWO_THIRDS) if phases else None,
        is_in_phase=any(each.running for each in phases),
        candidate=candidate,
        bound=bound,
        bound_texts=BOUNDS,
        **comparison_values(candidate.datasets if candidate else []),
    )


def _steps(job: Job, events: list[Event]) -> list[Step]:
    """The states that it was in, and those that follow if it succeeds."""
    present = JobState.RUNNING if job.state == JobState.SUBMITTING else job.state
    ahead = _STEPS_OF_EVALUATION if job.kind == "evaluate" else STEPS
    if present in ahead and not job.dry_run:
        reached = ahead.index(present)
        return [
            Step(state=state, is_passed=index < reached, is_present=index == reached)
            for index, state in enumerate(ahead)
        ]
    seen = {event.kind.removeprefix("job.") for event in events}
    passed = [state for state in ahead if state in seen and state != present]
    steps = [Step(state=state, is_passed=True) for state in passed]
    return [*steps, Step(state=present, is_present=True)]


def _events(job: Job, principal: Principal, context: Context) -> list[Event]:
    wanted = EventFilter(owner=principal.owner, job=job.id)
    return read_page(context, wanted, Seek(None, "desc", _MOST_EVENTS)).items


@router.get("/jobs/{job}/log")
def log_page(
    request: Request,
    job: JobPath,
    principal: Reader,
    context: ContextDep,
    attempt: jobs.AttemptQuery = None,
) -> Response:
    """The end of what an attempt has printed."""
    return pages_of(request).render(
        request,
        "log.html",
        job=jobs.read_job(job, principal, context),
        log=jobs.read_log(job, principal, context, attempt),
    )


def attempts_of(job: Job, principal: Principal, context: Context) -> list[Attempt]:
    """The newest attempts, the newest first."""
    if not job.attempt:
        return []
    return jobs.list_attempts(
        job.id, principal, context, Seek(None, "desc", _LISTED_ATTEMPTS)
    ).items


@dataclass(frozen=True)
class BoundText:
    """How a bound of the gate is shown: what it limits, from which side, and whether as a share or in points."""

    label: str
    term: str
    is_minimum: bool = True
    in_points: bool = False


BOUNDS: Mapping[str, BoundText] = {
    "max_drift": BoundText("Largest drift of an earlier dataset", "drift", is_minimum=False),
    "min_backward_transfer": BoundText(
        "Mean change of R@1 of earlier datasets", "mean_change", in_points=True
    ),
    "min_overlap": BoundText("Ten best results that stay the same", "overlap"),
    "min_gain": BoundText("Gain of R@1 on the new dataset", "gain", in_points=True),
    "min_agreement": BoundText("Agreement of the new pairs", "agreement"),
}


# What the next page confirms, in DONE of explanations.py.
_DONE = {"cancel": "cancelled", "retry": "retried", "approve": "approved", "reject": "rejected"}


@router.get("/jobs/{job}/cancel")
@router.get("/jobs/{job}/retry")
@router.get("/jobs/{job}/approve")
@router.get("/jobs/{job}/reject")
def confirm_job(job: JobPath, asked: TrainersAction) -> Response:
    """Say what the action will do to the job."""
    return _job_page(asked, job)


@router.post("/jobs/{job}/cancel")
@router.post("/jobs/{job}/retry")
def act_on_job(
    job: JobPath, form: Annotated[SeenForm, posted(SeenForm)], asked: TrainersAction
) -> Response:
    """Cancel or retry the job."""
    act = jobs.cancel_job if _action(asked.http) == "cancel" else jobs.retry_job
    return confirmed(
        lambda: act(job, asked.note(form.seen), asked.context, None),
        lambda: see_other(asked.http, f"jobs/{job}", _DONE[_action(asked.http)]),
        lambda error: _job_page(asked, job, error),
    )


@router.post("/jobs/{job}/approve")
@router.post("/jobs/{job}/reject")
def decide(
    job: JobPath, form: Annotated[DecisionForm, posted(DecisionForm)], asked: TrainersAction
) -> Response:
    """Approve or reject the candidate of the job."""
    act = jobs.approve_job if _action(asked.http) == "approve" else jobs.reject_job
    return confirmed(
        lambda: act(job, Reason(reason=form.reason), asked.note(form.seen), asked.context, None),
        lambda: see_other(asked.http, f"jobs/{job}", _DONE[_action(asked.http)]),
        lambda error: _job_page(asked, job, error),
    )


def _action(request: Request) -> str:
    return request.url.path.rpartition("/")[2]


def _job_page(asked: ActionRequest, job: str, changed: Rejected | None = None) -> Response:
    principal, context = asked.principal, asked.context
    found, action = jobs.read_job(job, principal, context), _action(asked.http)
    model = read_summary(found.model, principal, context)
    is_decision = action in ("approve", "reject")
    is_possible = {
        "cancel": found.state in CANCELLABLE and not found.cancel_requested,
        "retry": found.state in (JobState.FAILED, JobState.REJECTED),
        "approve": found.state == JobState.HELD,
        "reject": found.state == JobState.HELD,
    }
    return asked.page(
        "confirm_job.html",
        changed,
        action=action,
        job=found,
        model=model,
        candidate=_candidate(found, principal, context) if is_decision else None,
        attempts=context.settings.max_attempts,
        is_possible=is_possible[action],
    )


def _candidate(job: Job, principal: Principal, context: Context) -> Candidate | None:
    """The candidate; None if there is none, or it cannot be read."""
    try:
        return jobs.read_candidate(job.id, principal, context)
    except (NotFound, Conflict):
        return None
