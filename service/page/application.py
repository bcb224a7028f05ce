"""The page as a separate application: its routes, and the layers that each request passes.

The routes raise the same errors as `/v1`, and so do the layers between: all arrive at the outermost layer as problem+json,
which makes documents of them.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.authentication import Hosts
from service.api.limits import Budgets, OwnerLimits
from service.api.problems import (
    INTERNAL,
    NOT_FOUND,
    Kind,
    ProblemResponse,
    add_problem_handlers,
    problem,
    rejected_body,
)
from service.context import Context
from service.page import (
    collections,
    comparison,
    datasets,
    events,
    jobs,
    login,
    memory,
    models,
    start,
    try_it,
    versions,
)
from service.page.access import PageAccess
from service.page.endpoint import open_endpoint
from service.page.explanations import NEXT_STEPS
from service.page.rendering import PREFIX, Pages, StaticFiles, static_files
from service.telemetry.logs import current_request

logger = logging.getLogger(__name__)

_ROUTES = (
    models,
    memory,
    comparison,
    versions,
    jobs,
    datasets,
    try_it,
    collections,
    events,
    login,
    start,
)

_JSON = "application/json"

# Scripts and styles come from files alone; `trusted-types 'none'`: no script makes markup of text.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer`, browsers send `Origin: null` with the page's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def create_page(api: FastAPI, context: Context, budgets: Budgets) -> FastAPI:
    """Create the page beside the API, whose state it shares."""
    settings, files = context.settings, static_files()
    page = FastAPI(
        routes=_routes(),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=context.metrics.spans.of_requests(),
    )
    page.state = api.state
    pages = Pages(files, context.clock, is_open=settings.auth == "off")
    page.state.pages = pages
    page.state.page = page
    page.state.endpoint = open_endpoint(settings, context.clock)
    page.add_api_route(PREFIX + "/static/{digest}/{name}", _static(files), methods=["GET"])
    add_problem_handlers(page)
    page.exception_handler(HTTPException)(_not_routed)
    # The last one added is the outermost.
    page.add_middleware(OwnerLimits, budgets=budgets)
    page.add_middleware(
        PageAccess,
        authenticator=context.authenticator,
        sessions=context.sessions,
        hosts=Hosts(settings.allowed_hosts),
        page_url=settings.page_url,
    )
    page.add_middleware(PageResponses, pages=pages)
    return page


@cache
def _routes() -> list[BaseRoute]:
    """The routes of the page, which all apps of a process share (see `service.app`)."""
    router = APIRouter()
    for module in _ROUTES:
        router.include_router(module.router)
    return router.routes


class PageBesideApi:
    """ASGI middleware that passes requests below `/ui` to the page, and sends browsers from `/` there."""

    def __init__(self, app: ASGIApp, page: ASGIApp) -> None:
        self._app = app
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_http = scope["type"] == "http"
        if is_http and scope["path"].startswith(f"{PREFIX}/"):
            await self._page(scope, receive, send)
        elif is_http and scope["path"] in ("/", PREFIX) and scope["method"] in ("GET", "HEAD"):
            # Relative, because an ingress may add a prefix: the same address from both paths.
            await RedirectResponse("ui/", 307)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _static(files: StaticFiles) -> Callable[..., Awaitable[Response]]:
    async def static(digest: str, name: str, request: Request) -> Response:
        return files.response(digest, name, request.headers.get("accept-encoding", ""))

    return static


async def _not_routed(request: Request, error: HTTPException) -> Response:
    if refused := rejected_body(error, request.url.path):
        return refused
    kind = (
        NOT_FOUND
        if error.status_code == 404
        else Kind(error.status_code, "http-error", "Request failed")
    )
    path = request.url.path
    return problem(kind, f"there is no page {path[:200]!r}", path, headers=error.headers)


class PageResponses:
    """ASGI middleware of the page: adds headers to every response, and renders problem+json as a document."""

    def __init__(self, app: ASGIApp, pages: Pages) -> None:
        self._app = app
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, is_of_script=_JSON in Request(scope).headers.get("accept", ""))
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            if answer.has_started:
                raise
            logger.exception("unhandled error in a page", extra={"path": scope["path"][:512]})
            note = current_request.get()
            detail = f"it was logged under the request id {note.id if note else 'unknown'}"
            await problem(INTERNAL, detail, scope["path"])(scope, receive, answer.send)
        if answer.problem is not None:
            response = await to_thread.run_sync(self._document, scope, answer)
            await response(scope, receive, answer.pass_on)

    def _document(self, scope: Scope, answer: "_Answer") -> Response:
        found: dict[str, Any] = json.loads(answer.body)
        kind = str(found["type"]).rpartition(":")[2]
        response = self._pages.render_whole(
            Request(scope),
            "problem.html",
            found["status"],
            problem=found,
            steps=NEXT_STEPS.get(kind),
        )
        for name in ("retry-after", "connection"):
            if name in answer.problem_headers:
                response.headers[name] = answer.problem_headers[name]
        return response


class _Answer:
    """Passes a response on with more headers, and keeps a problem instead.

    A script that asks for JSON gets the problem as it is.
    """

    def __init__(self, send: Send, *, is_of_script: bool) -> None:
        self._send = send
        self._is_of_script = is_of_script
        self.has_started = False
        self.problem: Message | None = None
        self.body = b""

    @property
    def problem_headers(self) -> MutableHeaders:
        return MutableHeaders(scope=self.problem or {"headers": []})

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = MutableHeaders(scope=message).get("content-type", "")
            if kind.startswith(ProblemResponse.media_type) and not self._is_of_script:
                self.problem = message
                return
        elif self.problem is not None:
            self.body += message.get("body", b"")
            return
        await self.pass_on(message)

    async def pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)
