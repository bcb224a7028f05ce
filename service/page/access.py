"""Access to the page: who sends a request, and defence against requests that other sites make a browser send.

A browser shows the cookie of a session, or a proxy that has signed it in sends its token as `Authorization: Bearer`, as
to `/v1`. The cookie is valid only here: `/v1` reads only the header.

A request that changes something must come from the page itself. Browsers say so in `Sec-Fetch-Site` and `Origin`, which
scripts cannot set; a request with neither is refused, also with a token, because a proxy adds it to what any site makes
a browser send. So there are no nonces in forms.

The cookie is `SameSite=Strict`: a browser that follows a link from elsewhere does not send it at first. It gets a document
that opens the same address again, this time from here.
"""

from html import escape
from urllib.parse import urlencode, urlsplit

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.authentication import Hosts, Rejections, address_of, bearer, headers, is_loopback
from service.api.problems import error_response
from service.auth.authenticator import Authenticator, Caller
from service.auth.rate_limiter import client_network
from service.auth.sessions import Sessions, principal_of
from service.core.errors import Forbidden, Rejected, ServiceError, TooManyRequests, Unauthorized
from service.core.principal import LOCAL, Principal
from service.database.queries.sessions import SessionRow
from service.page.rendering import PREFIX, Visitor, is_fragment, root_of
from service.telemetry.logs import name_principal

LOGIN = f"{PREFIX}/login"
STATIC = f"{PREFIX}/static/"
_OPEN = frozenset({LOGIN, f"{PREFIX}/logout"})
_SAFE = frozenset({"GET", "HEAD"})
_SAME = "same-origin"
_COOKIE = "__Host-cmcl"
# Browsers accept a cookie without TLS from the machine itself, but Safari no `Secure` one.
_LOOPBACK_COOKIE = "cmcl"
_STARTED = "the page was signed out or the session has ended; sign in"
# In the query of an address that is opened a second time.
_AGAIN = "again"
# A document that opens an address, in place of a redirect.
_NEXT_DOCUMENT = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>cmcl</title>
<meta http-equiv="refresh" content="0; url={address}">
<p><a href="{address}">Continue</a></p>
"""


class PageAccess:
    """ASGI middleware that sets the principal of a request from its session or token."""

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        sessions: Sessions,
        hosts: Hosts,
        page_url: str,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._sessions = sessions
        self._hosts = hosts
        self._origin = _origin(page_url)
        self._rejections = Rejections(authenticator.rate_limiter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["visitor"] = _anonymous(scope)
        state["principal"] = state["visitor"].principal
        try:
            visitor = await self._admit(scope)
        except ServiceError as error:
            await self._refuse(error, scope, receive, send)
            return
        state["visitor"], state["principal"] = visitor, visitor.principal
        await self._app(scope, receive, send)
        # After the response, so that the browser does not wait for it.
        if visitor.session is not None and self._sessions.is_use_due(visitor.session):
            await to_thread.run_sync(self._sessions.write_use, visitor.session)

    async def _admit(self, scope: Scope) -> Visitor:
        limiter = self._authenticator.rate_limiter
        if scope["method"] not in _SAFE:
            check_same_origin(scope, self._origin)
        if self._authenticator.is_open:
            self._hosts.check(scope)
            return Visitor(LOCAL)
        is_static, is_open = scope["path"].startswith(STATIC), scope["path"] in _OPEN
        session = None if is_static else await self._session(scope)
        if session is not None:
            caller = Caller(principal_of(session))
        elif is_static or is_open or bearer(scope) is None:
            limiter.count_open(address_of(scope))
            if is_static or is_open:
                return _anonymous(scope)
            raise Unauthorized(_STARTED)
        else:
            caller = await self._authenticator.identify(bearer(scope), address_of(scope))
        name_principal(caller.principal.name)
        self._authenticator.count(caller)
        return Visitor(caller.principal, session)

    async def _session(self, scope: Scope) -> SessionRow | None:
        shown = shown_session(Request(scope))
        if shown is None:
            return None
        found = self._sessions.recognize(shown)
        if found is not None:
            return found
        limiter, address = self._authenticator.rate_limiter, address_of(scope)
        try:
            # As for keys, a session that was valid here before is exempt, even if its address has failed attempts.
            if not self._sessions.was_valid(shown):
                limiter.check_address(address)
            return await to_thread.run_sync(self._sessions.look_up, shown)
        except Unauthorized:
            limiter.count_failure(address)
            return None
        except TooManyRequests:
            return None

    async def _refuse(
        self, error: ServiceError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response: Response
        # The form would not help a person whose proxy sends a token that is not valid.
        if isinstance(error, Unauthorized) and bearer(scope) is None and _is_navigation(scope):
            response = _to_login(scope)
        else:
            response = error_response(error, scope["path"])
            if isinstance(error, Rejected) and not await self._rejections.delay(address_of(scope)):
                response.headers["connection"] = "close"
        await response(scope, receive, send)


def check_same_origin(scope: Scope, origin: str | None) -> None:
    """Raises Forbidden unless the page itself sent the request. `origin`: that of the page, if it is configured."""
    sites = headers(scope, b"sec-fetch-site")
    origins = headers(scope, b"origin")
    if not sites and not origins:
        raise Forbidden(
            "requests that change something need a browser that says where they come from (Origin); "
            "programs use /v1 with a key"
        )
    if any(site != _SAME for site in sites):
        raise Forbidden(f"the request comes from another site ({sites[0][:40]!r})")
    own = {f"{scheme}://{_host(scope)}" for scheme in ("http", "https")}
    own |= {origin} if origin else set()
    foreign = [each for each in origins if each.lower() not in own]
    if foreign:
        raise Forbidden(
            f"the request comes from a page of {foreign[0][:200]!r}, and this is {' or '.join(sorted(own))}; "
            "behind a proxy that changes the Host header, set CMCL_PAGE_URL"
        )


def shown_session(request: Request) -> str | None:
    return request.cookies.get(cookie_name(request))


def cookie_name(request: Request) -> str:
    """The name of the cookie: that without `Secure` on this machine and without TLS alone."""
    is_local = request.url.scheme == "http" and is_loopback(request.url.hostname or "")
    return _LOOPBACK_COOKIE if is_local else _COOKIE


def set_session(request: Request, response: Response, value: str, seconds: int) -> None:
    """Give the browser its session; with 0 seconds, take it back."""
    name = cookie_name(request)
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path="/",
        secure=name == _COOKIE,
        httponly=True,
        samesite="strict",
    )


def _anonymous(scope: Scope) -> Visitor:
    """A client address, whose requests count together."""
    network = f"~{client_network(address_of(scope))}"
    return Visitor(Principal("anonymous", network, frozenset()), is_signed_in=False)


def _is_navigation(scope: Scope) -> bool:
    """Whether a person waits for a document, and not a script for a part of one."""
    accepted = "".join(headers(scope, b"accept"))
    return (
        scope["method"] in _SAFE
        and ("text/html" in accepted or not accepted)
        and not is_fragment(Request(scope))
    )


def _to_login(scope: Scope) -> Response:
    request = Request(scope)
    path, query = request.url.path.removeprefix(f"{PREFIX}/"), request.query_params
    kept = [(name, value) for name, value in query.multi_items() if name != _AGAIN]
    if "cross-site" in headers(scope, b"sec-fetch-site") and _AGAIN not in query:
        address = escape(f"{root_of(request.url.path)}{path}?{urlencode([*kept, (_AGAIN, 1)])}")
        return HTMLResponse(_NEXT_DOCUMENT.format(address=address))
    wanted = f"{path}?{urlencode(kept)}" if kept else path
    following = f"?{urlencode({'next': wanted})}" if wanted else ""
    return RedirectResponse(f"{root_of(request.url.path)}login{following}", 303)


def _host(scope: Scope) -> str:
    return "".join(headers(scope, b"host")).lower()


def _origin(page_url: str) -> str | None:
    if not page_url:
        return None
    parts = urlsplit(page_url.lower())
    return f"{parts.scheme}://{parts.netloc}"
