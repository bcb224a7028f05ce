"""Versions of a model, and the one that answers."""

import json
from datetime import datetime
from typing import Literal, Self

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from cmcl.contract.version import (
    Drift,
    HeadCapacity,
    LearnedDataset,
    Protection,
    Quality,
    Recall,
    Shrinkage,
    VersionManifest,
)
from service.api.dependencies import (
    Admin,
    ContextDep,
    IdempotencyKeyDep,
    ModelPath,
    Reader,
    Reason,
    ReasonBody,
    SeenRevision,
    Trainer,
    VersionPath,
    etag,
)
from service.api.idempotency import respond, response_record
from service.api.pagination import LARGEST_NUMBER, Limit, NumberCursor, Page, page
from service.database.queries import versions
from service.database.rows import (
    PromotionRecord,
    ResponseRecord,
    VersionOutline,
    VersionRecord,
)
from service.errors import NotFound
from service.lookup import get_model, get_version
from service.registry import models as registry
from service.registry.promotion import choose, roll_back
from service.registry.promotion_request import PromotionRequest
from service.stale_database import check_may_change

router = APIRouter(prefix="/v1/models/{model}", tags=["versions"])


class VersionSummary(BaseModel):
    """A published version, without its manifest."""

    model: str
    version: int
    parent: int | None
    job: str | None = Field(description="none for one that a branch has from its source")
    attempt: int
    dataset: str
    dataset_name: str
    copied_from: str | None = Field(description="model whose version of this number it is")
    created_at: datetime
    stored_at: datetime | None = Field(description="when its files were in place")
    retired_at: datetime | None = Field(description="when it was taken out of use")

    @classmethod
    def of(cls, version: VersionOutline) -> Self:
        """The view of a record."""
        return cls(
            model=version.model,
            version=version.number,
            parent=version.parent,
            job=version.job,
            attempt=version.attempt,
            dataset=version.dataset,
            dataset_name=version.dataset_name,
            copied_from=version.copied_from,
            created_at=version.created_at,
            stored_at=version.stored_at,
            retired_at=version.retired_at,
        )


class Certificate(BaseModel):
    """What this version did to the datasets before it, by dataset."""

    drift: dict[str, Drift]
    quality: dict[str, Quality]
    protection: dict[str, Protection] = Field(description="by modality: what was closed to it")
    shrinkage: Shrinkage | None


class EvaluationRow(BaseModel):
    """One version: its recall on every dataset up to it that has held-out rows."""

    version: int
    learned: str = Field(description="dataset that it learned")
    recall: dict[str, Recall] = Field(description="by dataset")


class VersionView(VersionSummary):
    """A published version with everything that is known about it."""

    certificate: Certificate
    evaluation_matrix: list[EvaluationRow] = Field(
        description="versions up to this one: down a column, what became of a dataset"
    )
    capacity: dict[str, HeadCapacity] = Field(description="by modality: what is left to learn with")
    lineage: tuple[LearnedDataset, ...] = Field(
        description="what it has learned, with the digests of all shards"
    )
    manifest: VersionManifest

    @classmethod
    def whole(
        cls, version: VersionRecord, evaluations: list[tuple[int, str, dict[str, Recall]]]
    ) -> Self:
        """The view of a record, and of the evaluations of the versions up to it."""
        report = version.manifest.report
        return cls(
            **VersionSummary.of(version).model_dump(),
            certificate=Certificate.model_validate(report, from_attributes=True),
            evaluation_matrix=[
                EvaluationRow(version=number, learned=learned, recall=recall)
                for number, learned, recall in evaluations
            ],
            capacity=report.capacity,
            lineage=version.manifest.learned,
            manifest=version.manifest,
        )


class LiveChoice(Reason):
    """Which version shall answer, and why."""

    version: int = Field(ge=1, le=LARGEST_NUMBER)


class LiveView(BaseModel):
    """Which version answers, and since how many promotions."""

    version: int
    generation: int


class PromotionView(BaseModel):
    """One change of the version that answers."""

    generation: int
    version: int
    previous: int | None
    kind: Literal["published", "promoted", "rolled_back"]
    reason: str
    actor: str = Field(description="name of the key, or `reconciler` for a new version")
    created_at: datetime

    @classmethod
    def of(cls, promotion: PromotionRecord) -> Self:
        """The view of a record."""
        return cls(**{field: getattr(promotion, field) for field in cls.model_fields})


@router.get("/versions")
def list_versions(
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    cursor: NumberCursor,
    limit: Limit = 50,
) -> Page[VersionSummary]:
    """Versions of a model, the first one first."""
    with context.database.read() as connection:
        get_model(connection, model, principal)
        found = versions.outlines(connection, model, cursor, limit + 1)
    return page(found, limit, VersionSummary.of, lambda version: version.number)


@router.get("/versions/{version}")
def read_version(
    model: ModelPath, version: VersionPath, principal: Reader, context: ContextDep
) -> VersionView:
    """One version: certificate, evaluation matrix, capacity, lineage, and its manifest."""
    with context.database.read() as connection:
        found = get_version(connection, model, version, principal)
        evaluations = versions.evaluations(connection, model, version)
    return VersionView.whole(found, evaluations)


@router.delete("/versions/{version}", status_code=204)
def retire_version(
    model: ModelPath, version: VersionPath, principal: Admin, context: ContextDep
) -> None:
    """Let a version answer no more. 409 for the newest one and the one that answers.

    Its heads and its manifest stay, because later versions are measured against them.
    """
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        registry.retire_version(connection, model, version, principal, context.clock())


@router.get("/live")
def read_live(
    model: ModelPath, principal: Reader, context: ContextDep, response: Response
) -> LiveView:
    """The version that answers."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
    if found.live_version is None:
        raise NotFound(f"model {model!r} has no version yet, so none answers")
    response.headers.update(etag(found.live_generation))
    return LiveView(version=found.live_version, generation=found.live_generation)


@router.put("/live")
def put_live(
    model: ModelPath,
    body: LiveChoice,
    principal: Trainer,
    context: ContextDep,
    response: Response,
    seen: SeenRevision,
) -> LiveView:
    """Promote a version. It answers once the replicas have followed."""
    request = PromotionRequest(
        principal, body.reason or "promoted by a user", context.clock(), seen
    )
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        live = choose(connection, model, body.version, request)
    response.headers.update(etag(live.generation))
    return LiveView(version=live.version, generation=live.generation)


@router.post("/rollback", response_model=LiveView)
def post_rollback(
    model: ModelPath,
    body: ReasonBody,
    principal: Trainer,
    context: ContextDep,
    key: IdempotencyKeyDep,
    seen: SeenRevision,
) -> JSONResponse:
    """Back to the version that was promoted before the one that answers."""
    request = PromotionRequest(
        principal, body.reason or "rolled back by a user", context.clock(), seen
    )

    def effect(connection: Connection) -> ResponseRecord:
        live = roll_back(connection, model, request)
        view = LiveView(version=live.version, generation=live.generation)
        return response_record(key, 200, view)

    check_may_change(context, model, principal)
    response = respond(context, key, effect)
    response.headers.update(etag(json.loads(bytes(response.body))["generation"]))
    return response


@router.get("/promotions")
def list_promotions(
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    cursor: NumberCursor,
    limit: Limit = 50,
) -> Page[PromotionView]:
    """Each change of the version that answers: who, when, why, from, to. The first one first."""
    with context.database.read() as connection:
        get_model(connection, model, principal)
        found = versions.promotion_page(connection, model, cursor, limit + 1)
    return page(found, limit, PromotionView.of, lambda promotion: promotion.generation)
