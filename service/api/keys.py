"""API keys: create, list, revoke; the identity of the caller, and quotas of an owner."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from cmcl.contract.api.access import ApiKey, CreatedKey, Quota, QuotaName, Quotas, Whoami
from service.api.dependencies import Admin, AnyPrincipal, ContextDep, IdempotencyKeyDep, Reader
from service.api.idempotency import respond, response_row
from service.api.pagination import Page, TextSeek, page
from service.auth.keys import NewKey, create_key, get_key, mint, revoke_key
from service.auth.ownership import COUNTED_AFTER_DELETION
from service.context import Context
from service.core.errors import NotFound
from service.database.queries import job_queue, keys, models, uploads
from service.database.queries.keys import KeyRow
from service.database.rows import ResponseRow

router = APIRouter(tags=["keys"])

KeyPath = Annotated[str, Path(alias="key", pattern=r"^key-[0-9a-f]{12}$")]


def to_key(key: KeyRow) -> ApiKey:
    return ApiKey.model_validate(vars(key) | {"scopes": sorted(key.scopes)})


@router.get("/v1/whoami")
def whoami(principal: AnyPrincipal) -> Whoami:
    """Read the identity and the scopes of the caller."""
    return Whoami(name=principal.name, owner=principal.owner, scopes=sorted(principal.scopes))


@router.post("/v1/keys", status_code=201, response_model=CreatedKey)
def post_key(
    body: NewKey, principal: Admin, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Create a key. Its secret is in this response only; store it.

    409 if its owner has as many keys as permitted.
    """
    minted = mint()

    def effect(connection: Connection) -> ResponseRow:
        made = create_key(connection, body, minted, principal, context.clock())
        return response_row(key, 201, CreatedKey(**vars(to_key(made))), f"/v1/keys/{made.id}")

    return respond(context, key, effect, {"key": minted.text})


@router.get("/v1/keys")
def list_keys(principal: Admin, context: ContextDep, seek: TextSeek) -> Page[ApiKey]:
    """List keys by id, also expired and revoked ones."""
    with context.database.read() as connection:
        found = keys.page(connection, principal.owner, seek.peek())
    return page(found, seek, to_key, lambda key: key.id)


@router.get("/v1/keys/{key}")
def read_key(key: KeyPath, principal: Admin, context: ContextDep) -> ApiKey:
    """Read a key."""
    with context.database.read() as connection:
        return to_key(get_key(connection, key, principal))


@router.delete("/v1/keys/{key}", status_code=204)
def delete_key(key: KeyPath, principal: Admin, context: ContextDep) -> None:
    """Revoke a key and end the sessions that were started with it.

    This replica refuses them at once, the others within some seconds.
    """
    with context.database.write() as connection:
        revoke_key(connection, key, principal, context.clock())
    context.authenticator.forget(key)
    context.sessions.forget_all()


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
