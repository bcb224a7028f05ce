"""The HTTP interface of a replica: embeddings, models, health.

Everything that decides is passed in, so the whole of it runs without Ray.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from workers.serve.http.admission import RowsInFlight
from workers.serve.http.answers import embeddings_body, models_body
from workers.serve.http.errors import BodyTooLarge, NotReady, install_error_handlers
from workers.serve.http.lookup import VersionLookup
from workers.serve.http.rows import check_count, to_array
from workers.serve.http.schemas import (
    EmbeddingRequest,
    parse_min_version,
    parse_reference,
    parse_request,
)
from workers.serve.metrics import ServeMetrics
from workers.serve.settings import ServeArgs
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import ServedVersion
from workers.serve.versions.recent import RecentVersions

# Below this a hop to another thread costs more than it frees.
_INLINE_ROWS = 32

_DOCUMENTED_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": EmbeddingRequest.model_json_schema()}},
    }
}


def create_api(
    args: ServeArgs, live: LiveVersions, recent: RecentVersions, metrics: ServeMetrics
) -> FastAPI:
    """The ASGI application of one replica."""
    app = FastAPI(title="cmcl embeddings")
    install_error_handlers(app, metrics)
    embedder = _Embeddings(
        args, VersionLookup(live, recent, args.min_version_wait_seconds), metrics
    )

    # Registered by hand: FastAPI would validate the body a second time, and slower.
    app.post("/v1/embeddings", openapi_extra=_DOCUMENTED_BODY)(embedder.answer)

    @app.get("/v1/models")
    async def list_models() -> Response:
        """What answers now."""
        return Response(models_body(live.all()), media_type="application/json")

    @app.get("/healthz")
    async def healthz() -> Response:
        """The process answers, and says which application it is: a restarted driver looks."""
        return JSONResponse({"status": "ok", "application": args.identity})

    @app.get("/readyz")
    async def readyz() -> Response:
        """The replica has looked at the store, so it knows what is live."""
        if not live.ready:
            raise NotReady("this replica has not seen the store yet")
        return JSONResponse({"status": "ready"})

    return app


class _Embeddings:
    """`POST /v1/embeddings`."""

    def __init__(self, args: ServeArgs, lookup: VersionLookup, metrics: ServeMetrics) -> None:
        self._args = args
        self._lookup = lookup
        self._metrics = metrics
        self._in_flight = RowsInFlight(args.max_rows_in_flight)
        # One thread, as torch has one: more would only take turns.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")

    async def answer(self, request: Request) -> Response:
        """Embed features with one version, from the first row to the last."""
        query = parse_request(await _read_body(request, self._args.max_body_bytes))
        wanted = parse_reference(query.model)
        min_version = parse_min_version(request.headers.get("x-min-model-version"))
        rows = len(query.rows)
        check_count(rows, self._args.max_rows)
        with self._in_flight.admitted(rows):
            version = await self._lookup.find(wanted, min_version)
            body = await self._embed(version, query)
        self._metrics.answered(version.model, rows)
        headers = {"x-model-version": str(version.number)}
        return Response(body, media_type="application/json", headers=headers)

    async def _embed(self, version: ServedVersion, query: EmbeddingRequest) -> bytes:
        if len(query.rows) <= _INLINE_ROWS:
            return _embed(version, query)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, _embed, version, query)


def _embed(version: ServedVersion, query: EmbeddingRequest) -> bytes:
    rows_BF = to_array(query.rows, query.modality, version.spec)
    compute = version.embed if query.normalize else version.project
    return embeddings_body(version, compute(query.modality, rows_BF), query.encoding_format)


async def _read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as that is known."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLarge(f"the body has {declared} bytes; permitted are {limit}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(f"the body has more than {limit} bytes, which is what is permitted")
    return bytes(body)
