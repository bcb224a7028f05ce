"""The canary: a version that serves a share of the traffic beside the live one."""

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from cmcl.contract.policy import CanaryPlan, RolloutRule
from service.api.dependencies import (
    ContextDep,
    ModelPath,
    Reader,
    Reason,
    SeenRevision,
    Trainer,
    etag,
)
from service.api.pagination import LARGEST_NUMBER, NumberSeek, Page, page
from service.context import Context
from service.database.queries import canaries
from service.database.rows import CanaryOutcome, CanaryRecord
from service.lookup import get_model
from service.principal import Principal
from service.registry.promotion import (
    PromotionRequest,
    abort_canary,
    figures,
    get_canary,
    set_canary,
)
from service.stale_database import check_may_change

router = APIRouter(prefix="/v1/models/{model}", tags=["versions"])

ReasonQuery = Annotated[
    str, Query(max_length=500, pattern=r"^[^\x00]*$", description="why, for the history")
]


SeenVersion = Annotated[
    int | None,
    Query(
        ge=1,
        le=LARGEST_NUMBER,
        description="end it only if it is this version; 412 if it is another one",
    ),
]


class CanaryChoice(CanaryPlan, Reason):
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
    started_at: datetime = Field(
        description="since when it is observed: its shares or the live version may have changed then"
    )
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
            started_at=record.started_at,
            observed=ObservedView.model_validate(figures(record.observed)),
        )


class CanaryRunView(CanaryView):
    """A canary that runs or has ended, with its observations under one revision."""

    ended_at: datetime | None = Field(description="null: it runs")
    outcome: CanaryOutcome | None = Field(
        description="promoted: it became the live version; aborted: it ended without; changed: it continued under the "
        "next revision, because its shares or the live version changed"
    )
    ended_because: str | None = Field(description="why it ended")

    @classmethod
    def of(cls, record: CanaryRecord) -> Self:
        """The view of a record."""
        shown = CanaryView.of(record)
        return cls(
            **{name: getattr(shown, name) for name in CanaryView.model_fields},
            ended_at=record.ended_at,
            outcome=record.outcome,
            ended_because=record.ended_because,
        )


@router.get("/canaries")
def list_canaries(
    model: ModelPath, principal: Reader, context: ContextDep, seek: NumberSeek
) -> Page[CanaryRunView]:
    """List the canaries of a model, also ended ones, oldest first; with `order=desc`, the newest first.

    One that was changed is listed once for each revision of live.json, because its observations start again.
    """
    with context.database.read() as connection:
        get_model(connection, model, principal)
        found = canaries.page(connection, model, seek.peek())
    return page(found, seek, CanaryRunView.of, lambda record: record.revision)


@router.get("/canary")
def read_canary(
    model: ModelPath, principal: Reader, context: ContextDep, response: Response
) -> CanaryView:
    """Read the canary, and how it compares with the live version."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
        record = get_canary(connection, model)
    response.headers.update(etag(found.live_generation))
    return CanaryView.of(record)


@router.put("/canary")
def put_canary(
    model: ModelPath,
    body: CanaryChoice,
    principal: Trainer,
    context: ContextDep,
    response: Response,
    seen: SeenRevision,
) -> CanaryView:
    """Start a canary, or change its plan. The ETag is that of `live`.

    409 for the live version, a retired one, and one whose files are not stored yet. Another canary of the model is
    aborted. Changed shares start new observations; a changed rule applies to the observations so far.
    """
    record, generation = choose_canary(model, body, principal, context, seen)
    response.headers.update(etag(generation))
    return CanaryView.of(record)


def choose_canary(
    model: str,
    body: CanaryChoice,
    principal: Principal,
    context: Context,
    seen: int | None,
    seen_canary: str | None = None,
) -> tuple[CanaryRecord, int]:
    """Start a canary, or change its plan, and return it with the live generation. `seen_canary`: see PromotionRequest."""
    trace = context.metrics.spans.traceparent()
    reason = body.reason or "started by a user"
    request = PromotionRequest(principal, reason, context.clock(), seen, trace, seen_canary)
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        record = set_canary(connection, model, body.version, body.plan, request)
        found = get_model(connection, model, principal)
    return record, found.live_generation


@router.delete("/canary", status_code=204)
def delete_canary(
    model: ModelPath,
    principal: Trainer,
    context: ContextDep,
    reason: ReasonQuery = "",
    version: SeenVersion = None,
    seen: SeenRevision = None,
) -> None:
    """End the canary. The version is kept and no longer serves requests. The ETag is that of `live`."""
    trace = context.metrics.spans.traceparent()
    reason = reason or "aborted by a user"
    request = PromotionRequest(principal, reason, context.clock(), seen, trace)
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        abort_canary(connection, model, request, version)
