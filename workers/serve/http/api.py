"""The HTTP interface of a replica, put together. The whole of it runs without Ray."""

from fastapi import FastAPI

from workers.serve.http.errors import install_error_handlers
from workers.serve.http.replica import Replica
from workers.serve.http.routes import announcements, embeddings, health, models

_ROUTERS = (embeddings.router, models.router, health.router)


def create_api(replica: Replica) -> FastAPI:
    """The ASGI application of one replica."""
    app = FastAPI(title="cmcl embeddings")
    install_error_handlers(app, replica.metrics)
    for router in _ROUTERS:
        app.include_router(router(replica))
    app.include_router(announcements.router(replica.announcer))
    return app
