"""The routes of the API, one module per noun."""

from functools import cache

from fastapi import APIRouter, Depends
from starlette.routing import BaseRoute

from service.api import (
    attempts,
    candidates,
    datasets,
    encoders,
    events,
    history,
    jobs,
    keys,
    models,
    openapi,
    operations,
    phases,
    quotas,
    summaries,
    uploads,
    versions,
    webhooks,
)
from service.api.dependencies import require_body_type
from service.api.openapi import PROBLEMS, operation_id

# In the order of the API description.
_MODULES = (
    summaries,
    models,
    versions,
    history,
    encoders,
    uploads,
    datasets,
    jobs,
    candidates,
    attempts,
    phases,
    events,
    webhooks,
    keys,
    quotas,
    operations,
    openapi,
)


@cache
def api_routes() -> list[BaseRoute]:
    """Return the routes. All apps of a process share them: FastAPI describes each on first use, which takes long."""
    router = APIRouter(
        dependencies=[Depends(require_body_type)],
        responses=PROBLEMS,
        generate_unique_id_function=operation_id,
    )
    for module in _MODULES:
        router.include_router(module.router)
    return router.routes
