"""Versions of a model with their measurements, the room that is left, the live version, and promotions."""

import json
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy import Connection

from cmcl.contract.api.versions import (
    Certificate,
    EvaluationRow,
    FreeShare,
    Live,
    ModalityCapacity,
    ModelCapacity,
    Promotion,
    Version,
    VersionSummary,
)
from cmcl.contract.capacity import FULL_BELOW, RECENT, forecast
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import HeadCapacity, MeasuredDataset, Recall
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
from service.api.jobs import to_approval
from service.api.pagination import LARGEST_NUMBER, NumberSeek, Page, page
from service.auth.ownership import get_model, get_version
from service.core.errors import NotFound
from service.database.queries import datasets, jobs, versions
from service.database.queries.versions import Capacities
from service.database.rows import JobRow, PromotionRow, ResponseRow, VersionOutline, VersionRow
from service.registry import models as registry
from service.registry.live_pointer import check_may_change
from service.registry.promotion import PromotionRequest, choose, roll_back

router = APIRouter(prefix="/v1/models/{model}", tags=["versions"])


ByDataset = Annotated[
    Flag,
    Query(
        description="whether to include the measurements of each dataset, which are most of the response"
    ),
]
Every = Annotated[
    int,
    Query(
        ge=1,
        le=LARGEST_NUMBER,
        description="25: only every 25th version, counted back from the newest, to see a long history in one page",
    ),
]


def to_summary(
    version: VersionOutline, measured_after: Sequence[MeasuredDataset] = ()
) -> VersionSummary:
    """Convert a row, and the datasets that were measured after the version was made."""
    by_dataset = None
    if version.figures:
        after = {
            each.dataset: each.recall.at_1 for each in measured_after if each.recall is not None
        }
        only = after | version.figures["evaluation_only"]
        by_dataset = {**version.figures, "evaluation_only": only}
    return VersionSummary.model_validate(
        {
            **vars(version),
            "version": version.number,
            "pair": {"first": version.pair_first, "second": version.pair_second},
            "free_share": {name: each["free_share"] for name, each in version.capacity.items()},
            "by_dataset": by_dataset,
        }
    )


def to_version(
    version: VersionRow,
    job: JobRow | None,
    evaluations: list[tuple[int, str | None, dict[str, Recall]]],
    measured_after: Sequence[MeasuredDataset],
) -> Version:
    """Convert a row, that of its job, the evaluations of the versions up to it, and what was measured after it was made."""
    report = version.manifest.report
    # One that was prepared while the version was trained may be measured twice.
    measured = {each.dataset: each for each in (*measured_after, *report.evaluation_only)}
    return Version(
        **vars(to_summary(version)),
        certificate=Certificate.model_validate(report, from_attributes=True),
        evaluation_matrix=[
            EvaluationRow(version=number, learned=learned, recall=recall)
            for number, learned, recall in evaluations
        ],
        evaluation_only=tuple(measured.values()),
        capacity=report.capacity,
        approval=to_approval(job),
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


def to_promotion(promotion: PromotionRow) -> Promotion:
    return Promotion.model_validate(vars(promotion))


@router.get("/versions")
def list_versions(
    model: ModelPath,
    principal: Reader,
    context: ContextDep,
    seek: NumberSeek,
    by_dataset: ByDataset = False,
    every: Every = 1,
) -> Page[VersionSummary]:
    """List versions of a model with their measurements, oldest first; with `order=desc`, the newest first."""
    with context.database.read() as connection:
        newest = get_model(connection, model, principal).head
        part = versions.Part(seek.peek(), newest, every)
        found = versions.outlines(connection, model, part, by_dataset=by_dataset)
        measured_after = datasets.measured_after(connection, model) if by_dataset else {}
    return page(
        found,
        seek,
        lambda version: to_summary(version, measured_after.get(version.number, ())),
        lambda version: version.number,
    )


@router.get("/versions/{version}")
def read_version(
    model: ModelPath,
    version: VersionPath,
    principal: Reader,
    context: ContextDep,
    matrix: WithMatrix = True,
) -> Version:
    """Read a version: certificate, evaluation matrix, capacity, lineage and manifest."""
    with context.database.read() as connection:
        found = get_version(connection, model, version, principal)
        job = None if found.job is None else jobs.find(connection, found.job)
        evaluations = versions.evaluations(connection, model, version) if matrix else []
        measured_after = datasets.measured_after(connection, model).get(version, [])
    return to_version(found, job, evaluations, measured_after)


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
def read_live(model: ModelPath, principal: Reader, context: ContextDep, response: Response) -> Live:
    """Read the live version."""
    with context.database.read() as connection:
        found = get_model(connection, model, principal)
    if found.live_version is None:
        raise NotFound(f"model {model!r} has no live version yet")
    response.headers.update(etag(found.live_generation))
    return Live(version=found.live_version, generation=found.live_generation)


@router.put("/live")
def put_live(
    model: ModelPath,
    body: LiveChoice,
    principal: Trainer,
    context: ContextDep,
    response: Response,
    seen: SeenRevision,
) -> Live:
    """Promote a version. It is live once the replicas have loaded it."""
    trace = context.metrics.spans.traceparent()
    reason = body.reason or "promoted by a user"
    request = PromotionRequest(principal, reason, context.clock(), seen, trace)
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        live = choose(connection, model, body.version, request)
    response.headers.update(etag(live.generation))
    return Live(version=live.version, generation=live.generation)


@router.post("/rollback", response_model=Live)
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
        view = Live(version=live.version, generation=live.generation)
        return response_row(key, 200, view)

    check_may_change(context, model, principal)
    response = respond(context, key, effect)
    response.headers.update(etag(json.loads(bytes(response.body))["generation"]))
    return response


@router.get("/promotions")
def list_promotions(
    model: ModelPath, principal: Reader, context: ContextDep, seek: NumberSeek
) -> Page[Promotion]:
    """List promotions: who, when, why, from and to which version. Oldest first; with `order=desc`, the newest."""
    with context.database.read() as connection:
        get_model(connection, model, principal)
        found = versions.promotion_page(connection, model, seek.peek())
    return page(found, seek, to_promotion, lambda promotion: promotion.generation)


Newest = Annotated[
    int, Query(ge=1, le=1000, description="number of newest versions in each `history`")
]


@router.get("/capacity")
def read_capacity(
    model: ModelPath, principal: Reader, context: ContextDep, limit: Newest = 200
) -> ModelCapacity:
    """Read how full each head is, how it filled, and a forecast of how many more datasets fit."""
    with context.database.read() as connection:
        spec = get_model(connection, model, principal).spec
        newest = versions.newest_capacities(connection, model, limit)
        now = newest[-1].by_modality if newest else {}
        own = {modality: _own_shares(connection, model, modality, newest) for modality in now}
    return ModelCapacity(
        model=model,
        version=newest[-1].number if newest else None,
        full_below=FULL_BELOW,
        modalities={
            modality: _capacity(modality, HeadCapacity.model_validate(head), newest, own[modality])
            for modality, head in now.items()
        },
        remark=_remark(spec),
    )


def _own_shares(
    connection: Connection, model: str, modality: str, newest: Sequence[Capacities]
) -> list[float]:
    """Free shares after the latest datasets of the modality, as many as the forecast uses."""
    own = [each for each in newest if modality in each.pair][-RECENT:]
    if len(own) < RECENT and newest[0].number > 1:
        own = versions.capacities_after_own(connection, model, modality, RECENT)
    return [_free_share(each, modality) for each in own if modality in each.by_modality]


def _free_share(version: Capacities, modality: str) -> float:
    return version.by_modality[modality]["free_share"]


def _capacity(
    modality: str, now: HeadCapacity, newest: Sequence[Capacities], own: Sequence[float]
) -> ModalityCapacity:
    room = forecast(own)
    return ModalityCapacity(
        now=now,
        datasets_left=room.datasets_left,
        taken_per_dataset=room.taken_per_dataset,
        history=[
            FreeShare(
                version=each.number,
                free_share=_free_share(each, modality),
                learned=modality in each.pair,
            )
            for each in newest
            if modality in each.by_modality
        ],
    )


def _remark(spec: ModelSpec) -> str | None:
    if spec.method:
        return f"the method {spec.method} closes no entries; shown is what preserve would close"
    if spec.solves:
        return "the policy improve solves all heads from moments, which closes no entries"
    return None
