"""Quotas of an owner: what it uses and may use."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from service.api.dependencies import ContextDep, Reader
from service.auth.ownership import COUNTED_AFTER_DELETION
from service.context import Context
from service.core.errors import NotFound
from service.core.settings import Quota
from service.database.queries import job_queue, models, uploads

router = APIRouter(tags=["keys"])


class QuotaView(BaseModel):
    """How much of a quota an owner uses."""

    used: int = Field(description="number, or bytes for upload_bytes")
    limit: int | None = Field(
        description="more are refused with 409; of running_jobs, more wait. null: unlimited"
    )


class QuotasView(BaseModel):
    """The quotas of an owner."""

    owner: str
    quotas: dict[Quota, QuotaView]


@router.get("/v1/quotas")
def read_quotas(
    principal: Reader,
    context: ContextDep,
    owner: Annotated[
        str | None,
        Query(
            max_length=64,
            pattern=r"^[^\x00]*$",
            description="for the operator; by default the caller's",
        ),
    ] = None,
) -> QuotasView:
    """Read what an owner uses of its quotas."""
    asked = owner or principal.owns_as
    if not principal.sees(asked):
        raise NotFound(f"there is no owner {asked!r}")
    with context.database.read() as connection:
        used = _used(connection, context, asked)
    return QuotasView(
        owner=asked,
        quotas={
            quota: QuotaView(used=number, limit=context.settings.limit(asked, quota))
            for quota, number in used.items()
        },
    )


def _used(connection: Connection, context: Context, owner: str) -> Mapping[Quota, int]:
    return {
        "running_jobs": job_queue.running(connection, job_queue.TRAINING).get(owner, 0),
        "models": models.count(connection, owner, context.clock() - COUNTED_AFTER_DELETION),
        "upload_bytes": uploads.used(connection, owner)[1],
    }
