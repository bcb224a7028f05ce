"""Summaries of models: what is live, learned, held and failed, for an overview without a request for each model."""

from fastapi import APIRouter

from cmcl.contract.api.jobs import JobState
from cmcl.contract.api.models import JobCounts, ModelSummary
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.models import to_origin
from service.api.pagination import Page, TextSeek, page
from service.auth.ownership import get_model
from service.database.queries import models, overviews
from service.database.queries.overviews import Summaries
from service.database.rows import ModelRow

router = APIRouter(prefix="/v1", tags=["models"])

_WAITING = (JobState.QUEUED, JobState.PREPARING, JobState.PREPARED)
_RUNNING = (JobState.SUBMITTING, JobState.RUNNING, JobState.GATING)


def to_summary(model: ModelRow, found: Summaries) -> ModelSummary:
    """Convert a row, and the summaries of a page."""
    name, gate_bound = model.name, model.gate.max_drift
    counts = found.jobs.get(name, {})
    return ModelSummary(
        name=name,
        owner=model.owner,
        policy=model.spec.policy,
        method=model.spec.method,
        created_at=model.created_at,
        branched_from=to_origin(model.branched_from),
        live_version=model.live_version,
        live_generation=model.live_generation,
        newest=found.newest.get(name),
        drift_bound=model.spec.drift_bound if gate_bound is None else gate_bound,
        jobs=JobCounts(
            waiting=sum(counts.get(state, 0) for state in _WAITING),
            running=sum(counts.get(state, 0) for state in _RUNNING),
            held=counts.get(JobState.HELD, 0),
        ),
        current=found.current.get(name),
        last_ended=found.last_ended.get(name),
    )


@router.get("/overview")
def list_summaries(principal: Reader, context: ContextDep, seek: TextSeek) -> Page[ModelSummary]:
    """List summaries of models by name: what is live, learned, held and failed."""
    with context.database.read() as connection:
        found = models.page(connection, principal.owner, seek.peek())
        of_each = overviews.read_summaries(connection, [model.name for model in found])
    return page(found, seek, lambda model: to_summary(model, of_each), lambda model: model.name)


@router.get("/models/{model}/summary")
def read_summary(model: ModelPath, principal: Reader, context: ContextDep) -> ModelSummary:
    """Read the summary of a model."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
        return to_summary(found, overviews.read_summaries(connection, [model]))
