"""Probes and metrics: is the process alive, is it ready, what does it measure."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import text

from cmcl.contract.errors import StorageError
from service.api.dependencies import METRICS, ContextDep, LoopsDep
from service.context import Context
from service.core.errors import DatabaseError, DatabaseUnavailable
from service.core.loops import Loop

router = APIRouter(tags=["operations"])

# Probes come every few seconds, and a call may hang for minutes: each check has these
# threads of its own, and takes none of those that serve requests.
_THREADS = 2
# More frequent requests get the same response.
_TTL_SECONDS = 1.0
Made = TypeVar("Made")


class TTLCache(Generic[Made]):
    """Caches what `make` returned for `seconds`, and coalesces concurrent calls. Errors are not cached."""

    def __init__(self, make: Callable[[], Awaitable[Made]], seconds: float = math.inf) -> None:
        self._make = make
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._made: tuple[float, Made] | None = None

    async def get(self) -> Made:
        """Return the value, and create it if it is too old. Raises what `make` raises."""
        async with self._lock:
            if self._made is None or time.monotonic() - self._made[0] > self._seconds:
                made = await self._make()
                self._made = (time.monotonic(), made)
            return self._made[1]


def in_thread(make: Callable[[], Made]) -> Callable[[], Awaitable[Made]]:
    """Run `make` in a thread of its own, which blocks neither the event loop nor the threads of requests."""
    thread = CapacityLimiter(1)

    async def made() -> Made:
        return await to_thread.run_sync(make, limiter=thread)

    return made


class Health(BaseModel):
    """Health of this process; `checks` has the result of each check."""

    status: str
    checks: dict[str, str] = {}


class Probes:
    """Runs checks with a timeout below that of the prober."""

    def __init__(self, timeout_seconds: float = 4.0) -> None:
        self._timeout_seconds = timeout_seconds
        self._threads: dict[str, CapacityLimiter] = {}
        self._answers: dict[str, TTLCache[str]] = {}

    async def ask(self, name: str, question: Callable[[], None]) -> str:
        """Return `ok` or the problem; the result may be a second old."""
        if name not in self._answers:
            self._answers[name] = TTLCache(partial(self._ask, name, question), _TTL_SECONDS)
        return await self._answers[name].get()

    async def _ask(self, name: str, question: Callable[[], None]) -> str:
        threads = self._threads.setdefault(name, CapacityLimiter(_THREADS))
        try:
            with fail_after(self._timeout_seconds):
                await to_thread.run_sync(question, limiter=threads, abandon_on_cancel=True)
        except TimeoutError:
            return f"no response within {self._timeout_seconds:g} s"
        except (DatabaseError, StorageError) as error:
            return str(error)
        return "ok"


@router.get("/healthz", response_model=Health, responses={503: {"model": Health}})
async def healthz(loops: LoopsDep) -> JSONResponse:
    """Liveness: 503 if a background loop has hung for half an hour, or a thread of it has ended: only a restart helps.

    Database and object storage are not asked: their outage must not restart the service.
    """
    # Not in a thread: all threads may be waiting for what hangs.
    hung = {loop.name: problem for loop in loops if (problem := loop.ended or loop.hung())}
    if not hung:
        return JSONResponse(Health(status="ok").model_dump())
    return JSONResponse(Health(status="hung", checks=hung).model_dump(), 503)


@router.get("/readyz", response_model=Health, responses={503: {"model": Health}})
async def readyz(context: ContextDep, loops: LoopsDep, request: Request) -> JSONResponse:
    """Readiness: 503 if a background loop of this process makes no progress.

    An outage of the database or of object storage is in `checks` and leaves the status at 200 (`degraded`): all
    replicas share it, and each answers what it can, or 503 with the reason.
    """
    health = await check_health(context, loops, request.app.state.probes)
    return JSONResponse(health.model_dump(), 503 if health.status == "not ready" else 200)


async def check_health(context: Context, loops: Sequence[Loop], probes: Probes) -> Health:
    """Check the database, object storage and the background loops.

    `ok` if all are; `degraded` if what the replicas share does not respond, which may also stop loops; else `not ready`.
    """
    database, store = await asyncio.gather(
        probes.ask("database", lambda: _ask_database(context)),
        probes.ask("store", lambda: _ask_store(context)),
    )
    shared = {"database": database, "store": store}
    own = {loop.name: loop.ended or loop.problem() or "ok" for loop in loops}
    if set(shared.values()) != {"ok"}:
        status = "degraded"
    else:
        status = "ok" if set(own.values()) <= {"ok"} else "not ready"
    return Health(status=status, checks=shared | own)


@router.get(METRICS, response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format, at most a second old. If a metrics key is set, it is required."""
    rendered: TTLCache[bytes] = request.app.state.rendered_metrics
    return Response(await rendered.get(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def cached_metrics(context: Context) -> TTLCache[bytes]:
    return TTLCache(in_thread(partial(generate_latest, context.metrics.registry)), _TTL_SECONDS)


def _ask_database(context: Context) -> None:
    with context.database.read() as connection:
        connection.execute(text("SELECT 1"))
    # With a full disk, it can still be read. Loops write all the time.
    if context.database.write_problem is not None:
        raise DatabaseUnavailable(context.database.write_problem)


def _ask_store(context: Context) -> None:
    """List a prefix without objects: listing one with many takes long."""
    list(context.store.keys("probes/"))
