"""Keys: who may do what; create and revoke them. A secret is shown once."""

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from cmcl.contract.api.access import CreatedKey, Scope
from cmcl.contract.modality import Frozen
from service.api.dependencies import Admin, ContextDep
from service.api.keys import KeyPath, delete_key, list_keys, post_key, read_key
from service.api.pagination import CursorQuery, get_text_seek
from service.auth.keys import NewKey
from service.context import Context
from service.core.principal import Principal
from service.page.forms import Once, new_once, once, posted, see_other, validated
from service.page.rendering import PREFIX, pages_of, visitor_of

router = APIRouter(prefix=PREFIX)

_LISTED = 100
_MOST_SCOPES = 20


class KeyForm(Frozen):
    """A key as the form describes it. `once`: of a page, so that a form that is sent again creates nothing."""

    once: Once
    name: str = ""
    scopes: tuple[str, ...] = Field(default=(), max_length=_MOST_SCOPES)
    owner: str | None = None
    expires_in_days: int | None = None


@router.get("/keys")
def keys_page(
    request: Request, principal: Admin, context: ContextDep, cursor: CursorQuery = None
) -> Response:
    """Keys of the owner, and the form for another one."""
    return _page(request, principal, context, cursor)


@router.post("/keys")
def create_key(
    request: Request,
    form: Annotated[KeyForm, posted(KeyForm)],
    principal: Admin,
    context: ContextDep,
) -> Response:
    """Create a key, and show its secret."""
    new = validated(NewKey, form.model_dump(exclude={"once"}))
    answer = post_key(new, principal, context, once(request, principal, form.once, form))
    created = CreatedKey.model_validate_json(bytes(answer.body))
    return _page(request, principal, context, None, created)


@router.get("/keys/{key}/revoke")
def confirm_revocation(
    request: Request, key: KeyPath, principal: Admin, context: ContextDep
) -> Response:
    """Say what revoking the key means."""
    session = visitor_of(request).session
    found = read_key(key, principal, context)
    return pages_of(request).render(
        request,
        "confirm_revocation.html",
        key=found,
        is_own=session is not None and session.parent == key,
        is_possible=found.revoked_at is None,
        changed=None,
    )


@router.post("/keys/{key}/revoke")
def revoke_key(request: Request, key: KeyPath, principal: Admin, context: ContextDep) -> Response:
    """Revoke the key, and end its sessions."""
    delete_key(key, principal, context)
    return see_other(request, "keys", "key-revoked")


def _page(
    request: Request,
    principal: Principal,
    context: Context,
    cursor: str | None,
    created: CreatedKey | None = None,
) -> Response:
    found = list_keys(principal, context, get_text_seek(cursor, "asc", _LISTED))
    return pages_of(request).render(
        request,
        "keys.html",
        keys=found.items,
        next_cursor=found.next_cursor,
        created=created,
        once=new_once(),
        # A key grants what its creator has.
        scopes=[scope for scope in Scope if scope in principal.scopes],
    )
