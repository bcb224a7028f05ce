"""The canary: a version that serves a share of the traffic beside the live one."""

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
    """The version for the canary, its traffic, its rule, and the reason."""

    version: int = Field(ge=1, le=LARGEST_NUMBER)

    @property
    def plan(self) -> CanaryPlan:
        """The plan alone."""
        return CanaryPlan(share=self.share, shadow=self.shadow, rule=self.rule)


class AgreementView(BaseModel):
    """Agreement of the canary's scores with the live version's for one pair: means over queries."""

    queries: int
    cosine: float | None = Field(description="of the scores of both versions")
    overlap: float | None = Field(
        description="share of the ten best results that both have in common"
    )


class ObservedView(BaseModel):
    """Sums over the observations of all replicas."""

    replicas: int = Field(description="replicas that have written an observation")
    answered: int = Field(description="requests that the canary served")
    shadowed: int = Field(description="requests of the live version that the canary scored as well")
    failed: int = Field(description="requests that failed because of the canary")
    requests: int = Field(description="all of these, by which it is judged")
    error_share: float = Field(description="share of failed requests")
    refused: dict[str, str] = Field(description="by replica: why it could not load the canary")
    pairs: dict[str, AgreementView]
    unreadable: dict[str, str] = Field(description="by object: why the observation was ignored")
    at: datetime | None = Field(description="time of the newest observation")


class CanaryView(BaseModel):
    """A canary and its observations, which may be some seconds old."""

    version: int
    share: float
    shadow: float
    rule: RolloutRule
    revision: int = Field(description="revision of live.json since which it is observed")
    reason: str
    actor: str = Field(description="name of the key, or `reconciler` if the policy started it")
    began_at: datetime
    observed: ObservedView

    @classmethod
    def of(cls, record: CanaryRecord) -> Self:
        """The view of a record."""
        return cls(
            version=record.version,
            share=record.plan.share,
            shadow=record.plan.shadow,
            rule=record.plan.rule,
            revision=record.revision,
            reason=record.reason,
            actor=record.actor,
            began_at=record.began_at,
            observed=ObservedView.model_validate(figures(record.observed)),
        )


@router.get("")
def read_candidate(
    model: ModelPath, principal: Reader, context: ContextDep, response: Response
) -> CanaryView:
    """Read the canary, and how it compares with the live version."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
        record = canary.get_canary(connection, model)
    response.headers.update(etag(found.live_generation))
    return CanaryView.of(record)


@router.put("")
def put_candidate(
    model: ModelPath,
    body: CandidateChoice,
    principal: Trainer,
    context: ContextDep,
    response: Response,
    seen: SeenRevision,
) -> CanaryView:
    """Start a canary, or change its plan. The ETag is that of `live`.

    409 for the live version, a retired one, and one whose files are not stored yet. Another canary of the model is
    aborted. Changed shares start new observations; a changed rule applies to the observations so far.
    """
    request = PromotionRequest(principal, body.reason or "started by a user", context.clock(), seen)
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        record = canary.set_canary(connection, model, body.version, body.plan, request)
        found = get_model(connection, model, principal)
    response.headers.update(etag(found.live_generation))
    return CanaryView.of(record)


@router.delete("", status_code=204)
def delete_candidate(
    model: ModelPath, principal: Trainer, context: ContextDep, reason: ReasonQuery = ""
) -> None:
    """End the canary. The version is kept and serves no more requests."""
    request = PromotionRequest(principal, reason or "aborted by a user", context.clock())
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        canary.abort(connection, model, request)
