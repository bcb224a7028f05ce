"""For the machinery around us: is the process alive, can it work, what does it measure."""

import asyncio
from collections.abc import Callable
from functools import partial

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import text

from cmcl.contract.errors import StorageError
from service.api.dependencies import METRICS, ContextDep, ReconcilerDep
from service.api.ttl_cache import TTLCache, in_thread
from service.context import Context
from service.errors import DatabaseError

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    """Whether this process can do its work; `checks` says what each part answered."""

    status: str
    checks: dict[str, str] = {}


# Probes come every few seconds, and what hangs can hang for minutes: it holds up so many threads of
# its own, and none of those that answer requests.
_THREADS = 2
# Whoever asks more often gets the same answer.
_TTL_SECONDS = 1.0


class Probes:
    """Asks what must answer, for a few seconds at most: less than whoever probes is patient."""

    def __init__(self, patience_seconds: float = 4.0) -> None:
        self._patience_seconds = patience_seconds
        self._threads: dict[str, CapacityLimiter] = {}
        self._answers: dict[str, TTLCache[str]] = {}

    async def ask(self, name: str, question: Callable[[], None]) -> str:
        """`ok`, or in words what is wrong: this is the report of it, a second old at most."""
        if name not in self._answers:
            self._answers[name] = TTLCache(partial(self._ask, name, question), _TTL_SECONDS)
        return await self._answers[name].get()

    async def _ask(self, name: str, question: Callable[[], None]) -> str:
        threads = self._threads.setdefault(name, CapacityLimiter(_THREADS))
        try:
            with fail_after(self._patience_seconds):
                await to_thread.run_sync(question, limiter=threads, abandon_on_cancel=True)
        except TimeoutError:
            return f"no answer within {self._patience_seconds:g} s"
        except (DatabaseError, StorageError) as error:
            return str(error)
        return "ok"


@router.get("/healthz", response_model=Health, responses={503: {"model": Health}})
async def healthz(reconciler: ReconcilerDep) -> JSONResponse:
    """The process answers, and nothing hangs in it that only another process would be rid of.

    Nothing else is asked, so that an outage elsewhere restarts nobody.
    """
    # Not in a thread: they may all be waiting for whatever does not answer.
    hung = reconciler.hung()
    if hung is None:
        return JSONResponse(Health(status="ok").model_dump())
    return JSONResponse(Health(status="hung", checks={"reconciler": hung}).model_dump(), 503)


@router.get("/readyz", response_model=Health, responses={503: {"model": Health}})
async def readyz(context: ContextDep, reconciler: ReconcilerDep, request: Request) -> JSONResponse:
    """Database and object storage answer, and the reconciler gets round."""
    probes: Probes = request.app.state.probes
    database, store = await asyncio.gather(
        probes.ask("database", lambda: _ask_database(context)),
        probes.ask("store", lambda: _ask_store(context)),
    )
    checks = {
        "database": database,
        "store": store,
        "reconciler": "ok" if reconciler.is_healthy() else "no round has ended for too long",
    }
    is_ready = set(checks.values()) == {"ok"}
    health = Health(status="ok" if is_ready else "not ready", checks=checks)
    return JSONResponse(health.model_dump(), 200 if is_ready else 503)


@router.get(METRICS, response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus' text format, at most a second old. Where there is a metrics key, it must be sent."""
    rendered: TTLCache[bytes] = request.app.state.rendered_metrics
    return Response(await rendered.get(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def cached_metrics(context: Context) -> TTLCache[bytes]:
    """Rendering asks the database, and takes longer the more models there are."""
    return TTLCache(in_thread(partial(generate_latest, context.metrics.registry)), _TTL_SECONDS)


def _ask_database(context: Context) -> None:
    with context.database.read() as connection:
        connection.execute(text("SELECT 1"))


def _ask_store(context: Context) -> None:
    """Where nothing lies: looking through what is there takes longer the more there was."""
    list(context.store.keys("probes/"))
