"""For the machinery around us: is the process alive, can it work, what does it measure."""

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text

from service.api.dependencies import ContextDep, ReconcilerDep
from service.api.schemas import Health
from service.control.context import Context
from service.errors import DatabaseError
from workers.contract.errors import StorageError

router = APIRouter(tags=["operations"])


@router.get("/healthz")
def healthz() -> Health:
    """The process answers. Nothing else is asked, so that an outage elsewhere restarts nobody."""
    return Health(status="ok")


@router.get("/readyz", response_model=Health, responses={503: {"model": Health}})
def readyz(context: ContextDep, reconciler: ReconcilerDep) -> JSONResponse:
    """Database and object storage answer, and the reconciler gets round."""
    checks = {
        "database": _checked(lambda: _ask_database(context)),
        "store": _checked(lambda: context.store.folders("")),
        "reconciler": "ok" if reconciler.is_healthy() else "no round has ended for too long",
    }
    is_ready = set(checks.values()) == {"ok"}
    health = Health(status="ok" if is_ready else "not ready", checks=checks)
    return JSONResponse(health.model_dump(), 200 if is_ready else 503)


@router.get("/metrics", response_class=Response)
def metrics(context: ContextDep) -> Response:
    """Prometheus' text format."""
    body = generate_latest(context.metrics.registry)
    return Response(body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _ask_database(context: Context) -> None:
    with context.database.read() as connection:
        connection.execute(text("SELECT 1"))


def _checked(ask: Callable[[], object]) -> str:
    """`ok`, or in words what is wrong: this is the report of it."""
    try:
        ask()
    except (DatabaseError, StorageError) as error:
        return str(error)
    return "ok"
