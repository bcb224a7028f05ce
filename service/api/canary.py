"""A version on trial beside the one that answers."""

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from cmcl.contract.rollout import CanaryPlan, RolloutRule
from service.api.dependencies import (
    ContextDep,
    ModelPath,
    Reader,
    Reason,
    SeenRevision,
    Trainer,
    etag,
)
from service.api.pagination import LARGEST_NUMBER
from service.database.rows import CanaryRecord
from service.lookup import get_model
from service.registry import canary
from service.registry.canary import figures
from service.registry.promotion_request import PromotionRequest
from service.stale_database import check_may_change

router = APIRouter(prefix="/v1/models/{model}/candidate", tags=["versions"])

ReasonQuery = Annotated[
    str, Query(max_length=500, pattern=r"^[^\x00]*$", description="why, for the history")
]


class CandidateChoice(CanaryPlan, Reason):
    """Which version shall be tried, who sees it, what ends the trial, and why."""

    version: int = Field(ge=1, le=LARGEST_NUMBER)

    @property
    def plan(self) -> CanaryPlan:
        """The terms alone."""
        return CanaryPlan(share=self.share, shadow=self.shadow, rule=self.rule)


class AgreementView(BaseModel):
    """How the candidate's scores across one pair compare with the live version's: means."""

    queries: int
    cosine: float | None = Field(description="of the scores that both versions give")
    overlap: float | None = Field(description="share of the ten best that both have in common")


class ObservedView(BaseModel):
    """What all replicas together have told of the trial."""

    replicas: int = Field(description="that have told of it")
    answered: int = Field(description="requests that the candidate answered")
    shadowed: int = Field(description="requests of the live version scored by it as well")
    failed: int = Field(description="requests that failed because of it")
    requests: int = Field(description="by how many it is judged: all of these")
    error_share: float = Field(description="failed ones among them")
    refused: dict[str, str] = Field(description="by replica: why it could not load the candidate")
    pairs: dict[str, AgreementView]
    unreadable: dict[str, str] = Field(description="by object: why it was left out")
    at: datetime | None = Field(description="when a replica told something last")


class CanaryView(BaseModel):
    """A version on trial, and what was seen of it so far; that may be some seconds old."""

    version: int
    share: float
    shadow: float
    rule: RolloutRule
    revision: int = Field(description="of live.json, since which this is observed")
    reason: str
    actor: str = Field(description="name of the key, or `reconciler` where the policy began it")
    began_at: datetime
    observed: ObservedView

    @classmethod
    def of(cls, trial: CanaryRecord) -> Self:
        """The view of a record."""
        return cls(
            version=trial.version,
            share=trial.plan.share,
            shadow=trial.plan.shadow,
            rule=trial.plan.rule,
            revision=trial.revision,
            reason=trial.reason,
            actor=trial.actor,
            began_at=trial.began_at,
            observed=ObservedView.model_validate(figures(trial.observed)),
        )


@router.get("")
def read_candidate(
    model: ModelPath, principal: Reader, context: ContextDep, response: Response
) -> CanaryView:
    """The version on trial, and how it compares with the one that answers."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
        trial = canary.get_canary(connection, model)
    response.headers.update(etag(found.live_generation))
    return CanaryView.of(trial)


@router.put("")
def put_candidate(
    model: ModelPath,
    body: CandidateChoice,
    principal: Trainer,
    context: ContextDep,
    response: Response,
    seen: SeenRevision,
) -> CanaryView:
    """Try a version beside the one that answers, or change the trial. The ETag is that of `live`.

    409 for the version that answers, a retired one, and one whose files are not in place. Another
    version that is on trial is taken back. Other shares are observed anew; another rule also judges
    what was observed already.
    """
    request = PromotionRequest(
        principal, body.reason or "put on trial by a user", context.clock(), seen
    )
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        trial = canary.set_canary(connection, model, body.version, body.plan, request)
        found = get_model(connection, model, principal)
    response.headers.update(etag(found.live_generation))
    return CanaryView.of(trial)


@router.delete("", status_code=204)
def delete_candidate(
    model: ModelPath, principal: Trainer, context: ContextDep, reason: ReasonQuery = ""
) -> None:
    """Take the candidate back: the version stays, and nobody is answered by it any more."""
    request = PromotionRequest(principal, reason or "taken back by a user", context.clock())
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        canary.abort(connection, model, request)
