"""Signing in with a key, signing out, and the list of sessions."""

import re
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Self
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, Field, SecretStr

from cmcl.contract.api.access import Scope
from cmcl.contract.modality import Frozen
from service.api.authentication import address_of
from service.api.dependencies import ContextDep
from service.auth.authenticator import Authenticator, Caller
from service.core.errors import NotFound, Unauthorized
from service.database.queries.sessions import SessionRow
from service.page.access import set_session
from service.page.forms import posted, see_other
from service.page.rendering import PREFIX, pages_of, visitor_of

router = APIRouter(prefix=PREFIX)

_KEYS_ONLY = "sign in with a key: cmcl_ and some 56 characters, or the operator's"
_NO_COOKIE = (
    "the browser did not keep the cookie of the session; cookies must be permitted, and the page opened "
    "with https, or at 127.0.0.1"
)
# An address below /ui/, from a link or a bookmark: a path that cannot leave the site, and a query.
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9/_.~@:-]*(\?[!$%&'()*+,./0-9:;=?@A-Z_a-z~-]*)?")
_LONGEST_ADDRESS = 500

SessionPath = Annotated[str, Path(alias="session", pattern=r"^(ses|ops)-[0-9a-f]{12}$")]


class LoginForm(Frozen):
    """The form of the sign-in page."""

    key: SecretStr = Field(max_length=8192)
    read_only: bool = False
    next: str = Field(default="", max_length=2000)


class SessionView(BaseModel):
    """A session without its secret."""

    id: str
    name: str
    owner: str | None
    scopes: list[Scope]
    parent: str | None
    agent: str
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    is_this: bool

    @classmethod
    def of(cls, session: SessionRow, current: SessionRow | None) -> Self:
        values = {field: getattr(session, field, None) for field in cls.model_fields}
        is_this = current is not None and current.id == session.id
        return cls.model_validate({**values, "scopes": sorted(session.scopes), "is_this": is_this})


@router.get("/login")
def login_page(
    request: Request,
    following: Annotated[str, Query(alias="next", max_length=2000)] = "",
    signed_in: Annotated[bool, Query(alias="signed-in")] = False,
) -> Response:
    """The form to sign in; a browser that is signed in is redirected."""
    if visitor_of(request).is_signed_in:
        return see_other(request, safe_address(following))
    error = _NO_COOKIE if signed_in else None
    return _form(request, following, error, 200 if error is None else 401)


@router.post("/login")
def log_in(
    request: Request, form: Annotated[LoginForm, posted(LoginForm)], context: ContextDep
) -> Response:
    """Start a session with a key."""
    if context.authenticator.is_open:
        return see_other(request, safe_address(form.next))
    try:
        caller = _caller(
            context.authenticator, form.key.get_secret_value().strip(), address_of(request.scope)
        )
    except Unauthorized as error:
        return _form(request, form.next, str(error), 401)
    scopes = caller.principal.scopes
    wanted = scopes & {Scope.READ} if form.read_only else scopes
    started = context.sessions.start(caller, wanted, request.headers.get("user-agent", ""))
    # The sign-in page sees whether the browser kept the cookie, and redirects to the requested one.
    address = f"login?signed-in=1&next={quote(safe_address(form.next), safe='')}"
    response = see_other(request, address)
    seconds = int((started.row.expires_at - context.clock()).total_seconds())
    set_session(request, response, started.text.text, max(seconds, 1))
    return response


@router.post("/logout")
async def log_out(request: Request, context: ContextDep) -> Response:
    """End the session of this browser."""
    session = visitor_of(request).session
    if session is not None:
        # Ended elsewhere in the meantime: the cookie goes all the same.
        with suppress(NotFound):
            await run_in_threadpool(context.sessions.end, session, session.id)
    response = see_other(request, "login")
    set_session(request, response, "", 0)
    return response


@router.get("/sessions")
def sessions_page(request: Request, context: ContextDep) -> Response:
    """Sessions that this one may end."""
    session = visitor_of(request).session
    found = context.sessions.current(session) if session else []
    return pages_of(request).render(
        request, "sessions.html", sessions=[SessionView.of(each, session) for each in found]
    )


@router.post("/sessions/{session}/end")
def end_session(request: Request, session: SessionPath, context: ContextDep) -> Response:
    """End a session."""
    own = visitor_of(request).session
    if own is None:
        raise NotFound(f"there is no session {session!r}")
    context.sessions.end(own, session)
    return see_other(request, "sessions", "session-ended")


def safe_address(text: str) -> str:
    """An address below `/ui/` from outside, or that of the overview."""
    is_safe = len(text) <= _LONGEST_ADDRESS and _ADDRESS.fullmatch(text)
    return text if is_safe and ".." not in text and "//" not in text.partition("?")[0] else ""


def _caller(authenticator: Authenticator, shown: str, address: str) -> Caller:
    """The holder of a key. Raises Unauthorized, TooManyRequests."""
    if not shown or authenticator.asks_issuer(shown):
        raise Unauthorized(_KEYS_ONLY)
    return authenticator.recognize(shown) or authenticator.look_up(shown, address)


def _form(request: Request, following: str, error: str | None, status: int) -> Response:
    return pages_of(request).render(
        request, "login.html", status, following=safe_address(following), error=error
    )
