"""The page as an application of its own: its routes, and the layers that each request passes."""

from collections.abc import Awaitable, Callable
from functools import cache

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.authentication import Hosts
from service.api.bodies import Bodies, BodyLimits, Budget
from service.api.concurrency import ConcurrencyLimit, RequestSlots
from service.api.problems import NOT_FOUND, Kind, add_problem_handlers, problem
from service.context import Context
from service.page import (
    canary,
    canary_actions,
    candidate,
    capacity,
    collections,
    datasets,
    events,
    graph,
    job_actions,
    jobs,
    keys,
    login,
    memory,
    models,
    overview,
    promotion_actions,
    try_it,
    versions,
    webhooks,
)
from service.page.access import PageAccess
from service.page.endpoint import open_endpoint
from service.page.rendering import PREFIX, Pages
from service.page.responses import PageResponses
from service.page.static_files import StaticFiles, static_files

_ROUTES = (
    overview,
    models,
    memory,
    capacity,
    graph,
    canary,
    versions,
    promotion_actions,
    canary_actions,
    jobs,
    candidate,
    job_actions,
    datasets,
    try_it,
    collections,
    events,
    keys,
    webhooks,
    login,
)


def create_page(
    api: FastAPI, context: Context, slots: RequestSlots, limits: BodyLimits, budget: Budget
) -> FastAPI:
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
    pages = Pages(
        files,
        context.clock,
        is_open=settings.auth == "off",
        has_issuer=settings.oidc_client_id is not None,
    )
    page.state.pages = pages
    page.state.page = page
    page.state.endpoint = open_endpoint(settings, context.clock)
    page.add_api_route(PREFIX + "/static/{digest}/{name}", _static(files), methods=["GET"])
    add_problem_handlers(page)
    page.exception_handler(HTTPException)(_not_routed)
    # The last one added is the outermost.
    page.add_middleware(ConcurrencyLimit, slots=slots)
    page.add_middleware(Bodies, api=page, limits=limits, budget=budget)
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
    """The routes of the page, which all apps of a process share (see `service.api.routes`)."""
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
        """A style sheet, script or icon."""
        return files.response(digest, name, request.headers.get("accept-encoding", ""))

    return static


async def _not_routed(request: Request, error: HTTPException) -> Response:
    kind = (
        NOT_FOUND
        if error.status_code == 404
        else Kind(error.status_code, "http-error", "Request failed")
    )
    path = request.url.path
    return problem(kind, f"there is no page {path[:200]!r}", path, headers=error.headers)
