"""Quotas of an owner: what it uses and may use."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from cmcl.contract.api.access import Quota, QuotaName, Quotas
from service.api.dependencies import ContextDep, Reader
from service.auth.ownership import COUNTED_AFTER_DELETION
from service.context import Context
from service.core.errors import NotFound
from service.database.queries import job_queue, models, uploads

router = APIRouter(tags=["keys"])


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
) -> Quotas:
    """Read what an owner uses of its quotas."""
    asked = owner or principal.owns_as
    if not principal.sees(asked):
        raise NotFound(f"there is no owner {asked!r}")
    with context.database.read() as connection:
        used = _used(connection, context, asked)
    return Quotas(
        owner=asked,
        quotas={
            quota: Quota(used=number, limit=context.settings.limit(asked, quota))
            for quota, number in used.items()
        },
    )


def _used(connection: Connection, context: Context, owner: str) -> Mapping[QuotaName, int]:
    return {
        "running_jobs": job_queue.running(connection, job_queue.TRAINING).get(owner, 0),
        "models": models.count(connection, owner, context.clock() - COUNTED_AFTER_DELETION),
        "upload_bytes": uploads.used(connection, owner)[1],
    }
