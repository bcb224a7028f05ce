"""Summaries of models: what is live, learned, held and failed, for an overview without a request for each model."""

from collections.abc import Mapping
from datetime import datetime
from typing import Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.job import JobKind, Progress
from cmcl.contract.modality import Modality
from cmcl.contract.model import Policy
from service.api.dependencies import ContextDep, ModelPath, Reader
from service.api.models import BranchOrigin
from service.api.pagination import Page, TextSeek, page
from service.auth.ownership import get_model
from service.core.states import FailureReason, JobState
from service.database.queries import models, overviews
from service.database.queries.overviews import Summaries
from service.database.rows import ModelRow

router = APIRouter(prefix="/v1", tags=["models"])

_WAITING = (JobState.QUEUED, JobState.PREPARING, JobState.PREPARED)
_RUNNING = (JobState.SUBMITTING, JobState.RUNNING, JobState.GATING)


class NewestVersionView(BaseModel):
    """The newest version of a model."""

    model_config = ConfigDict(from_attributes=True)

    version: int = Field(validation_alias="number")
    kind: JobKind
    dataset: str | None = Field(description="null: it learned none")
    dataset_name: str
    created_at: datetime
    stored_at: datetime | None = Field(description="when its manifest was stored")
    max_drift: float | None = Field(
        description="largest drift of an earlier dataset since it was learned; null: there is none"
    )
    mean_recall: float | None = Field(
        description="mean R@1 over the datasets with held-out rows; null: there are none"
    )
    free_share: dict[Modality, float] = Field(
        description="by modality: share of its head's entries that the next dataset may change; empty if heads were "
        "solved from moments"
    )


class JobCounts(BaseModel):
    """Number of jobs that have not ended."""

    waiting: int = Field(description="queued, being prepared, or prepared and not begun")
    running: int = Field(description="with an attempt that is submitted, runs, or is judged")
    held: int = Field(description="with a candidate that waits for approval")

    @classmethod
    def of(cls, counts: Mapping[JobState, int]) -> Self:
        """Create it from the number of each state."""
        return cls(
            waiting=sum(counts.get(state, 0) for state in _WAITING),
            running=sum(counts.get(state, 0) for state in _RUNNING),
            held=counts.get(JobState.HELD, 0),
        )


class SummaryJobView(BaseModel):
    """A job of a model."""

    model_config = ConfigDict(from_attributes=True)

    job: str = Field(validation_alias="id")
    kind: JobKind
    dataset: str | None = Field(description="null: it merges another model")
    dataset_name: str
    state: JobState
    reason: FailureReason | None = Field(description="why it was rejected or has failed")
    message: str | None = Field(description="the reason as a sentence, or what it waits for")
    attempt: int
    version: int | None = Field(description="version that it creates")
    progress: Progress | None = Field(description="of the newest attempt")
    created_at: datetime
    state_changed_at: datetime
    finished_at: datetime | None


class ModelSummary(BaseModel):
    """A model at a glance."""

    name: str
    owner: str
    policy: Policy | None = Field(description="null: the model has a method")
    method: str | None = Field(description="in place of a policy")
    created_at: datetime
    branched_from: BranchOrigin | None
    live_version: int | None = Field(description="version that serves requests")
    live_generation: int = Field(description="number of promotions")
    newest: NewestVersionView | None = Field(description="null before the first version")
    drift_bound: float | None = Field(
        description="largest permitted drift, by the gate or else the specification; null: unlimited"
    )
    jobs: JobCounts
    current: SummaryJobView | None = Field(
        description="the job in work or held; without one, the first that waits; null: no job is open"
    )
    last_ended: SummaryJobView | None = Field(description="the job that ended last")

    @classmethod
    def of(cls, model: ModelRow, found: Summaries) -> Self:
        """Create it from a record, and the summaries of a page."""
        name, origin = model.name, model.branched_from
        newest = found.newest.get(name)
        current, ended = found.current.get(name), found.last_ended.get(name)
        bound = model.gate.max_drift
        return cls(
            name=name,
            owner=model.owner,
            policy=model.spec.policy,
            method=model.spec.method,
            created_at=model.created_at,
            branched_from=BranchOrigin(**vars(origin)) if origin else None,
            live_version=model.live_version,
            live_generation=model.live_generation,
            newest=NewestVersionView.model_validate(newest) if newest else None,
            drift_bound=model.spec.drift_bound if bound is None else bound,
            jobs=JobCounts.of(found.jobs.get(name, {})),
            current=SummaryJobView.model_validate(current) if current else None,
            last_ended=SummaryJobView.model_validate(ended) if ended else None,
        )


@router.get("/overview")
def list_summaries(principal: Reader, context: ContextDep, seek: TextSeek) -> Page[ModelSummary]:
    """List summaries of models by name: what is live, learned, held and failed."""
    with context.database.read() as connection:
        found = models.page(connection, principal.owner, seek.peek())
        of_each = overviews.read_summaries(connection, [model.name for model in found])
    return page(
        found, seek, lambda model: ModelSummary.of(model, of_each), lambda model: model.name
    )


@router.get("/models/{model}/summary")
def read_summary(model: ModelPath, principal: Reader, context: ContextDep) -> ModelSummary:
    """Read the summary of a model."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
        return ModelSummary.of(found, overviews.read_summaries(connection, [model]))
