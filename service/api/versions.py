"""Versions of a model, and the one that answers."""

import json

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from service.api.dependencies import (
    Admin,
    ContextDep,
    Limit,
    ModelPath,
    NumberCursor,
    Reader,
    RequestKeyDep,
    SeenRevision,
    Trainer,
    VersionPath,
    encode_cursor,
    etag,
)
from service.api.idempotency import answer, record
from service.api.schemas import (
    LiveChoice,
    LiveView,
    Page,
    PromotionView,
    ReasonBody,
    VersionSummary,
    VersionView,
)
from service.database.queries import versions
from service.database.rows import AnswerRecord
from service.errors import NotFound
from service.lookup import get_model, get_version
from service.registry import models as registry
from service.registry.promotion import choose, roll_back
from service.registry.promotion_request import Wish
from service.stale_database import check_may_change

router = APIRouter(prefix="/v1/models/{model}", tags=["versions"])


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
    following = encode_cursor(found[limit - 1].number) if len(found) > limit else None
    views = [VersionSummary.of(version) for version in found[:limit]]
    return Page(items=views, next_cursor=following)


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
    wish = Wish(principal, body.reason or "promoted by a user", context.clock(), seen)
    check_may_change(context, model, principal)
    with context.database.write() as connection:
        live = choose(connection, model, body.version, wish)
    response.headers.update(etag(live.generation))
    return LiveView(version=live.version, generation=live.generation)


@router.post("/rollback", response_model=LiveView)
def post_rollback(
    model: ModelPath,
    body: ReasonBody,
    principal: Trainer,
    context: ContextDep,
    key: RequestKeyDep,
    seen: SeenRevision,
) -> JSONResponse:
    """Back to the version that was promoted before the one that answers."""
    wish = Wish(principal, body.reason or "rolled back by a user", context.clock(), seen)

    def effect(connection: Connection) -> AnswerRecord:
        live = roll_back(connection, model, wish)
        view = LiveView(version=live.version, generation=live.generation)
        return record(key, 200, view)

    check_may_change(context, model, principal)
    response = answer(context, key, effect)
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
    following = encode_cursor(found[limit - 1].generation) if len(found) > limit else None
    views = [PromotionView.of(promotion) for promotion in found[:limit]]
    return Page(items=views, next_cursor=following)
