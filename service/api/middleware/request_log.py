"""Each request has an id, a line in the log and a measurement; each mistake of ours an answer."""

import logging
import re
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import INTERNAL, problem
from service.logs import request_id
from service.metrics import Metrics

logger = logging.getLogger(__name__)

_HEADER = "x-request-id"
# What a client may call its request: nothing that could break a log line or a header.
_ACCEPTABLE = re.compile(rb"^[A-Za-z0-9._:-]{1,128}$")
# Asked every few seconds by machines; their lines would bury the others.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class RequestLog:
    """The outermost layer of ours."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = _request_id(scope)
        token = request_id.set(name)
        started = time.perf_counter()
        status = 500
        answered = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                MutableHeaders(scope=message)[_HEADER] = name
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("a request met a mistake of ours", extra={"path": scope["path"]})
            if answered:
                raise
            detail = f"it was logged under the request id {name}"
            await problem(INTERNAL, detail, scope["path"])(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started)
            request_id.reset(token)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        self._metrics.requests.labels(scope["method"], route, str(status)).observe(seconds)
        if scope["path"] not in _QUIET:
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(seconds, 6),
            }
            logger.info("%s %s %d", scope["method"], scope["path"], status, extra=fields)


def _request_id(scope: Scope) -> str:
    """The client's id, if it gave one that can be used."""
    given: bytes = dict(scope["headers"]).get(_HEADER.encode(), b"")
    return given.decode() if _ACCEPTABLE.match(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """The template and not the path: each id would be a time series of its own."""
    route = scope.get("route")
    return getattr(route, "path", None) or "unknown"
