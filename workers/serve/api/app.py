"""The ASGI application of a replica: all routes, and those that no user calls (probes, and those of the control plane)."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from cmcl.contract import DISTRIBUTION
from cmcl.contract.api.endpoint import EndpointHealth
from cmcl.contract.version import ANNOUNCEMENTS, PARTS, EndpointParts
from workers.serve.api import (
    collections,
    embeddings,
    export,
    held_out,
    migrate,
    models,
    search,
    vector_stores,
)
from workers.serve.api.context import Replica
from workers.serve.api.middleware import (
    AllowedHosts,
    FastPath,
    Middleware,
    install_error_handlers,
)
from workers.serve.api.openapi import DescribedApp, operation, operation_id
from workers.serve.batcher import stuck
from workers.serve.encoders.port import EncoderUnavailable
from workers.serve.errors import NotReady

# Longer than any product takes: a thread that does not respond in this time is stuck.
_MOVES_SECONDS = 5.0
# How long an encoder and Serve's controller may take to answer, and how old the report of the parts may be.
_PART_SECONDS, _REPORT_SECONDS = 4.0, 1.0

_ROUTERS = (
    embeddings.router,
    migrate.router,
    models.router,
    held_out.router,
    export.router,
    collections.router,
    search.router,
    vector_stores.router,
)


def create_api(replica: Replica) -> Middleware:
    """Create the ASGI application of one replica."""
    args = replica.args
    app: ASGIApp = FastPath(describe(replica), embeddings.PATH, "POST", embeddings.handler(replica))
    return Middleware(
        app,
        replica.metrics.finished,
        replica.admission.bytes,
        AllowedHosts(args.allowed_hosts) if args.access_public_key is None else None,
    )


def describe(replica: Replica) -> FastAPI:
    """Return the application with all routes and their description."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
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
    app.include_router(_internal_router(replica))
    return app


def _internal_router(replica: Replica) -> APIRouter:
    """Return the probes, and the routes of the control plane. None needs a key: each does little, however often it is asked."""
    made = APIRouter(tags=["health"])
    parts = _Parts(replica)

    @made.get("/healthz", **operation("check_liveness", EndpointHealth, {500, 503}))
    async def healthz() -> Response:
        """Check that both compute threads respond; also says which application it is, for a restarted driver."""
        if problem := await stuck(
            replica.batcher, (replica.background, replica.searches), _MOVES_SECONDS
        ):
            raise NotReady(problem)
        return JSONResponse({"status": "ok", "application": replica.args.identity})

    @made.get("/readyz", **operation("check_readiness", EndpointHealth, {500, 503}))
    async def readyz() -> Response:
        """Check that the store and the keys were read. Each live version has passed its self-test when it was loaded."""
        if not replica.live.readiness.ready:
            raise NotReady(replica.live.readiness.reason)
        if not replica.access.ready:
            raise NotReady("this replica has not seen the list of keys yet")
        return JSONResponse({"status": "ready"})

    @made.post(ANNOUNCEMENTS, include_in_schema=False)
    async def post_announcement() -> Response:
        """Make all replicas poll the store now, some times a second at most. What changed they read there."""
        replica.announce()
        return JSONResponse({"status": "announced"}, 202)

    @made.get(PARTS, include_in_schema=False)
    async def get_parts() -> Response:
        """Report which encoders answer this replica, and how many replicas there are."""
        return JSONResponse((await parts.report()).model_dump())

    return made


class _Parts:
    """Asks the other parts of the endpoint, once for all requests of a second."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._controller = CapacityLimiter(1)
        self._asked_at = -math.inf
        self._asking: asyncio.Task[EndpointParts] | None = None

    async def report(self) -> EndpointParts:
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at > _REPORT_SECONDS):
            self._asked_at, self._asking = now, asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> EndpointParts:
        names = self._replica.encoders
        replicas, *states = await asyncio.gather(self._replicas(), *map(self._encoder, names))
        return EndpointParts(encoders=dict(zip(names, states, strict=True)), replicas=replicas)

    async def _encoder(self, name: str) -> str:
        try:
            async with asyncio.timeout(_PART_SECONDS):
                await self._replica.encoders[name].check(None)
        except EncoderUnavailable as error:
            return str(error)
        except TimeoutError:
            return f"no answer within {_PART_SECONDS:g} s"
        return "ok"

    async def _replicas(self) -> dict[str, int]:
        """A controller that hangs holds one thread."""
        states = self._replica.replica_states
        try:
            with fail_after(_PART_SECONDS):
                return dict(
                    await to_thread.run_sync(
                        states, limiter=self._controller, abandon_on_cancel=True
                    )
                )
        except TimeoutError:
            return {}
