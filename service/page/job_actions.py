"""What people do to jobs and open datasets: cancel, retry, approve, reject, seal. Each has a confirmation page."""

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cmcl.contract.api.jobs import Candidate, Job, JobState
from service.api import jobs
from service.api.candidates import read_candidate
from service.api.datasets import post_seal, read_dataset
from service.api.dependencies import ContextDep, DatasetPath, JobPath, Reason
from service.api.models import read_model
from service.api.summaries import read_summary
from service.context import Context
from service.core.errors import Conflict, NotFound, Refused
from service.core.principal import Principal
from service.core.states import CANCELLABLE
from service.page.forms import (
    ActionRequest,
    DecisionForm,
    ReadingTrainer,
    ReadingWriter,
    SeenForm,
    confirmed,
    posted,
    see_other,
)
from service.page.jobs import decision_of
from service.page.rendering import PREFIX

router = APIRouter(prefix=PREFIX)

# What the next page confirms, in DONE of explanations.py.
_DONE = {"cancel": "cancelled", "retry": "retried", "approve": "approved", "reject": "rejected"}


@router.get("/jobs/{job}/cancel")
@router.get("/jobs/{job}/retry")
@router.get("/jobs/{job}/approve")
@router.get("/jobs/{job}/reject")
def confirm_job(
    request: Request, job: JobPath, principal: ReadingTrainer, context: ContextDep
) -> Response:
    """Say what the action will do to the job."""
    return _job_page(ActionRequest(request, principal, context), job)


@router.post("/jobs/{job}/cancel")
@router.post("/jobs/{job}/retry")
def act_on_job(
    request: Request,
    job: JobPath,
    form: Annotated[SeenForm, posted(SeenForm)],
    principal: ReadingTrainer,
    context: ContextDep,
) -> Response:
    """Cancel or retry the job."""
    act = jobs.cancel_job if _action(request) == "cancel" else jobs.retry_job
    return confirmed(
        lambda: act(job, principal, context, None, form.seen),
        lambda: see_other(request, f"jobs/{job}", _DONE[_action(request)]),
        lambda error: _job_page(ActionRequest(request, principal, context), job, error),
    )


@router.post("/jobs/{job}/approve")
@router.post("/jobs/{job}/reject")
def decide(
    request: Request,
    job: JobPath,
    form: Annotated[DecisionForm, posted(DecisionForm)],
    principal: ReadingTrainer,
    context: ContextDep,
) -> Response:
    """Approve or reject the candidate of the job."""
    act = jobs.approve_job if _action(request) == "approve" else jobs.reject_job
    return confirmed(
        lambda: act(job, Reason(reason=form.reason), principal, context, None, form.seen),
        lambda: see_other(request, f"jobs/{job}", _DONE[_action(request)]),
        lambda error: _job_page(ActionRequest(request, principal, context), job, error),
    )


@router.get("/datasets/{dataset}/seal")
def confirm_seal(
    request: Request, dataset: DatasetPath, principal: ReadingWriter, context: ContextDep
) -> Response:
    """Say what sealing will do."""
    return _seal_page(ActionRequest(request, principal, context), dataset)


@router.post("/datasets/{dataset}/seal")
def seal(
    request: Request,
    dataset: DatasetPath,
    form: Annotated[SeenForm, posted(SeenForm)],
    principal: ReadingWriter,
    context: ContextDep,
) -> Response:
    """Seal the dataset; its job is queued."""
    return confirmed(
        lambda: post_seal(dataset, principal, context, None, form.seen),
        lambda: see_other(request, f"datasets/{dataset}", "sealed"),
        lambda error: _seal_page(ActionRequest(request, principal, context), dataset, error),
    )


def _action(request: Request) -> str:
    return request.url.path.rpartition("/")[2]


def _job_page(
    asked: ActionRequest,
    job: str,
    changed: Refused | None = None,
) -> Response:
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
        decision=decision_of(found, model),
        candidate=_candidate(found, principal, context) if is_decision else None,
        attempts=context.settings.max_attempts,
        is_possible=is_possible[action],
    )


def _candidate(job: Job, principal: Principal, context: Context) -> Candidate | None:
    """The candidate; None if there is none, or it cannot be read."""
    try:
        return read_candidate(job.id, principal, context)
    except (NotFound, Conflict):
        return None


def _seal_page(
    asked: ActionRequest,
    dataset: str,
    changed: Refused | None = None,
) -> Response:
    found = read_dataset(dataset, asked.principal, asked.context)
    return asked.page(
        "confirm_seal.html",
        changed,
        dataset=found,
        model=read_model(found.model, asked.principal, asked.context),
        is_possible=found.sealed_at is None and bool(found.shards),
    )
