"""The HTTP interface of a replica, put together. The whole of it runs without Ray."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp

from cmcl.contract import DISTRIBUTION
from workers.serve.api import collections, embeddings, internal, migrate, models, search, similarity
from workers.serve.api.context import Replica
from workers.serve.api.counted import Counted
from workers.serve.api.errors import install_error_handlers
from workers.serve.api.hosts import AllowedHosts
from workers.serve.api.openapi import DescribedApp, operation_id
from workers.serve.api.until_sent import ReleaseOnSent

_ROUTERS = (
    embeddings.router,
    similarity.router,
    migrate.router,
    models.router,
    collections.router,
    search.router,
    internal.router,
)


def create_api(replica: Replica) -> Counted:
    """The ASGI application of one replica."""
    args = replica.args
    app: ASGIApp = embeddings.fast_path(describe(replica), replica)
    app = ReleaseOnSent(app, replica.admission.bytes, args.body_seconds)
    if args.access_public_key is None:
        app = AllowedHosts(app, args.allowed_hosts)
    return Counted(app, replica.metrics.finished)


def describe(replica: Replica) -> FastAPI:
    """All routes, as they are described."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with replica.canaries.written():
            yield

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
    app.include_router(internal.router(replica.announcer))
    return app
