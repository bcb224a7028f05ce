"""Versions of a model, the live one, and promotions."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from cmcl.contract.job import JobKind
from cmcl.contract.version import (
    Drift,
    HeadCapacity,
    LearnedDataset,
    MeasuredDataset,
    Protection,
    Quality,
    Recall,
    Shrinkage,
    VersionManifest,
)
from service.api.dependencies import (
    Admin,
    ContextDep,
    Flag,
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
from service.api.idempotency import respond, response_row
from service.api.pagination import LARGEST_NUMBER, NumberSeek, Page, page
from service.auth.ownership import get_model, get_version
from service.core.errors import NotFound
from service.database.queries import datasets, versions
from service.database.rows import (
    PromotionRow,
    ResponseRow,
    VersionOutline,
    VersionRow,
)
from service.registry import models as registry
from service.registry.live_pointer import check_may_change
from service.registry.promotion import PromotionRequest, choose, roll_back

router = APIRouter(prefix="/v1/models/{model}", tags=["versions"])


class VersionSummary(BaseModel):
    """A published version, without its manifest."""

    model: str
    version: int
    parent: int | None
    job: str | None = Field(description="null for a version that a branch has from its source")
    attempt: int
    kind: JobKind
    dataset: str | None = Field(description="that it learned; null: it unlearned one, or merged")
    dataset_name: str = Field(
        description="also of the dataset that it unlearned; of a merge, the version as `model@version`"
    )
    copied_from: str | None = Field(
        description="model whose job made it, if a branch has it from there"
    )
    created_at: datetime
    stored_at: datetime | None = Field(description="when its manifest was stored")
    retired_at: datetime | None = Field(description="when it was retired")

    @classmethod
    def of(cls, version: VersionOutline) -> Self:
        """Create it from a record."""
        return cls(
            model=version.model,
            version=version.number,
            parent=version.parent,
            job=version.job,
            attempt=version.attempt,
            kind=version.kind,
            dataset=version.dataset,
            dataset_name=version.dataset_name,
            copied_from=version.copied_from,
            created_at=version.created_at,
            stored_at=version.stored_at,
            retired_at=version.retired_at,
        )


class Certificate(BaseModel):
    """The effect of this version on earlier datasets, by dataset."""

    drift: dict[str, Drift]
    quality: dict[str, Quality]
    protection: dict[str, Protection] = Field(
        description="by modality: what was protected from change"
    )
    shrinkage: Shrinkage | None


class EvaluationRow(BaseModel):
    """Recall of one version on every dataset up to it that has held-out rows."""

    version: int
    learned: str | None = Field(description="dataset that it learned; null: it unlearned or merged")
    recall: dict[str, Recall] = Field(description="by dataset")


class VersionView(VersionSummary):
    """A published version with its manifest and its measurements."""

    certificate: Certificate
    evaluation_matrix: list[EvaluationRow] = Field(
        description="one row per version up to this one; a column shows one dataset over time. Empty if not asked for"
    )
    evaluation_only: tuple[MeasuredDataset, ...] = Field(
        description="recall on datasets that are measured and never learned"
    )
    capacity: dict[str, HeadCapacity] = Field(description="by modality: capacity that is left")
    lineage: tuple[LearnedDataset, ...] = Field(
        description="datasets that it has learned, with the digests of all shards"
    )
    manifest: VersionManifest

    @classmethod
    def whole(
        cls,
        version: VersionRow,
        evaluations: list[tuple[int, str | None, dict[str, Recall]]],
        measured_after: Sequence[MeasuredDataset],
    ) -> Self:
        """Create it from a record, the evaluations of the versions up to it, and what was measured after it was made."""
        report = version.manifest.report
        # One that was prepared while the version was trained may be measured twice.
        measured = {each.dataset: each for each in (*measured_after, *report.evaluation_only)}
        return cls(
            **VersionSummary.of(version).model_dump(),
            certificate=Certificate.model_validate(report, from_attributes=True),
            evaluation_matrix=[
                EvaluationRow(version=number, learned=learned, recall=recall)
                for number, learned, recall in evaluations
            ],
            evaluation_only=tuple(measured.values()),
            capacity=report.capacity,
            lineage=version.manifest.learned,
            manifest=version.manifest,
        )


WithMatrix = Annotated[
    Flag,
    Query(
        description="whether to include `evaluation_matrix`, which has a row for each version up to this one; for more "
        f"than {versions.MOST_EVALUATIONS} versions, only every n-th row, counted back from this one, and at most "
        "so many"
    ),
]


class LiveChoice(Reason):
    """The version to promote, and the reason."""

    version: int = Field(ge=1, le=LARGEST_NUMBER)


class LiveView(BaseModel):
    """The live version and its generation."""

    version: int
    generation: int


class PromotionView(BaseModel):
    """A promotion: a change of the live version."""

    generation: int
    version: int
    previous: int | None
    kind: Literal["published", "promoted", "rolled_back"]
    returns_to: int | None = Field(
        description="generation that a rollback from this one returns to; null: there is none"
    )
    reason: str
    actor: str = Field(description="name of the key, or `reconciler` for a new version")
    created_at: datetime

    @classmethod
    def of(cls, promotion: PromotionRow) -> Self:
        """Create it from a record."""
        return cls(**{field: getattr(promotion, field) for field in cls.model_fields})


@router.get("/versions")
def list_versions(
    model: ModelPath, principal: Reader, context: ContextDep, seek: NumberSeek
) -> Page[VersionSummary]:
    """List versions of a model, oldest first; with `order=desc`, the newest first."""
    with context.database.read() as connection:
        get_model(connection, model, principal)
        found = versions.outlines(connection, model, seek.peek())
    return page(found, seek, VersionSummary.of, lambda version: version.number)


@router.get("/versions/{version}")
def read_version(
    model: ModelPath,
    version: VersionPath,
    principal: Reader,
    context: ContextDep,
    matrix: WithMatrix = True,
) -> VersionView:
    """Read a version: certificate, evaluation matrix, capacity, lineage and manifest."""
    with context.database.read() as connection:
        found = get_version(connection, model, version, principal)
        evaluations = versions.evaluations(connection, model, version) if matrix else []
        measured_after = datasets.measured_after(connection, model).get(version, [])
    return VersionView.whole(found, evaluations, measured_after)


@router.delete("/versions/{version}", status_code=204)
def retire_version(
    model: ModelPath,
    version: VersionPath,
    principal: Admin,
    context: ContextDep,
    seen: SeenRevision = None,
) -> None:
    """Retire a version. 409 for the newest one and the live one. The ETag is that of `live`.

    Its heads and its manifest are kept, because later versions are measured against them. Once every version that has
    learned an unlearned dataset is retired, all but their manifests is removed, with the dataset.
    """
    request = PromotionRequest(principal, "", context.clock(), seen)
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        registry.retire_version(connection, model, version, request)


@router.get("/live")
def read_live(
    model: ModelPath, principal: Reader, context: ContextDep, response: Response
) -> LiveView:
    """Read the live version."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
    if found.live_version is None:
        raise NotFound(f"model {model!r} has no live version yet")
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
    """Promote a version. It is live once the replicas have loaded it."""
    trace = context.metrics.spans.traceparent()
    reason = body.reason or "promoted by a user"
    request = PromotionRequest(principal, reason, context.clock(), seen, trace)
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
    """Roll back to the version that was promoted before the live one."""
    trace = context.metrics.spans.traceparent()
    reason = body.reason or "rolled back by a user"
    request = PromotionRequest(principal, reason, context.clock(), seen, trace)

    def effect(connection: Connection) -> ResponseRow:
        live = roll_back(connection, model, request)
        view = LiveView(version=live.version, generation=live.generation)
        return response_row(key, 200, view)

    check_may_change(context, model, principal)
    response = respond(context, key, effect)
    response.headers.update(etag(json.loads(bytes(response.body))["generation"]))
    return response


@router.get("/promotions")
def list_promotions(
    model: ModelPath, principal: Reader, context: ContextDep, seek: NumberSeek
) -> Page[PromotionView]:
    """List promotions: who, when, why, from and to which version. Oldest first; with `order=desc`, the newest."""
    with context.database.read() as connection:
        get_model(connection, model, principal)
        found = versions.promotion_page(connection, model, seek.peek())
    return page(found, seek, PromotionView.of, lambda promotion: promotion.generation)
