"""The ASGI application of a replica: the one place that puts its routes together."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cmcl.contract import DISTRIBUTION
from workers.serve.api import (
    collections,
    embeddings,
    export,
    held_out,
    internal,
    migrate,
    models,
    search,
    similarity,
)
from workers.serve.api.context import Replica
from workers.serve.api.middleware import (
    INTERNAL_PATHS,
    AllowedHosts,
    Middleware,
    answer_to,
    install_error_handlers,
)
from workers.serve.api.openapi import DescribedApp, operation_id
from workers.serve.errors import ApiError

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


_ROUTERS = (
    embeddings.router,
    similarity.router,
    migrate.router,
    models.router,
    held_out.router,
    export.router,
    collections.router,
    search.router,
    internal.probes_router,
)


def create_api(replica: Replica) -> Middleware:
    """Create the ASGI application of one replica."""
    args = replica.args
    app: ASGIApp = FastPath(describe(replica), embeddings.PATH, "POST", embeddings.handler(replica))
    if replica.tracing is not None:
        app = replica.tracing.layer(app, frozenset({embeddings.PATH}), INTERNAL_PATHS)
    return Middleware(
        app,
        replica.metrics.finished,
        replica.admission.bytes,
        args.body_seconds,
        AllowedHosts(args.allowed_hosts) if args.access_public_key is None else None,
    )


def describe(replica: Replica) -> FastAPI:
    """Return the application with all routes and their description."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with replica.canaries.written():
            yield
        if replica.tracing is not None:
            replica.tracing.close()

    app = DescribedApp(
        title="cmcl embeddings",
        version=version(DISTRIBUTION),
        lifespan=lifespan,
        generate_unique_id_function=operation_id,
        separate_input_output_schemas=False,
        # FastAPI's own pages load scripts from a CDN, which could use the key that a reader types in.
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app)
    for router in _ROUTERS:
        app.include_router(router(replica))
    app.include_router(internal.announcements_router(replica.announcer))
    return app


class FastPath:
    """An ASGI application: requests of one path and method go to `handler`, all others to `app`.

    FastAPI's and Starlette's layers (routing, dependencies, exit stacks, telemetry) cost a one-row request a
    quarter of its time, and `POST /v1/embeddings` needs none of them.
    """

    def __init__(self, app: FastAPI, path: str, method: str, handler: Handler) -> None:
        self.app = app
        self._path = path
        self._method = method
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or not self._is_meant(scope):
            await self.app(scope, receive, send)
            return
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    def _is_meant(self, scope: Scope) -> bool:
        return bool(scope["path"] == self._path and scope["method"] == self._method)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except (ApiError, ClientDisconnect) as error:
            return answer_to(error)
        except Exception as error:
            logger.exception("%s %s failed", self._method, self._path)
            return answer_to(error)
