"""Request ids, access log, request metrics, and a response for unhandled errors."""

import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import INTERNAL, problem
from service.telemetry.logs import RequestNote, current_request
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_HEADER = "x-request-id"
# Header of W3C Trace Context that names the span that answered.
_TRACE = "traceresponse"
# Tells a client with the wrong address which server this is; the embeddings endpoint sends one, too.
_SERVER = ("x-cmcl-server", "control-plane")
# Request ids that are accepted: safe in a log line and a header.
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# Requested every few seconds by probes and scrapers; not logged.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
# A client may send any method, and each would be a time series.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LONGEST_PATH = 512


@dataclass
class _Answer:
    """What was sent so far. A stream continues long after its response started."""

    status: int = 500
    began: float | None = None
    started: float = field(default_factory=time.perf_counter)


class RequestLog:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note = RequestNote(_request_id(scope), self._metrics.spans.traceparent())
        token = current_request.set(note)
        answer = _Answer()
        with self._metrics.requests_in_progress.track_inprogress():
            try:
                await self._answer(scope, receive, _with_ids(send, note, answer), answer)
            finally:
                self._record(scope, answer)
                current_request.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, answer: _Answer) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            fields = {"path": _path(scope)}
            logger.exception("unhandled error in a request", extra=fields)
            if answer.began is not None:
                raise
            note = current_request.get()
            detail = f"it was logged under the request id {note.id if note else 'unknown'}"
            await problem(INTERNAL, detail, scope["path"])(scope, receive, send)

    def _record(self, scope: Scope, answer: _Answer) -> None:
        now = time.perf_counter()
        method = scope["method"] if scope["method"] in _METHODS else "other"
        waited = (answer.began or now) - answer.started
        self._metrics.requests.labels(method, _route(scope), str(answer.status)).observe(waited)
        if scope["path"] not in _QUIET:
            fields = {
                "method": method,
                "path": _path(scope),
                "status": answer.status,
                "seconds": round(now - answer.started, 6),
            }
            logger.info("%s %s %d", method, fields["path"], answer.status, extra=fields)


def _with_ids(send: Send, note: RequestNote, answer: _Answer) -> Send:
    async def send_with_ids(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.began = message["status"], time.perf_counter()
            headers = MutableHeaders(scope=message)
            headers[_HEADER] = note.id
            if note.traceparent is not None:
                headers[_TRACE] = note.traceparent
            headers[_SERVER[0]] = _SERVER[1]
        await send(message)

    return send_with_ids


def _request_id(scope: Scope) -> str:
    """The request id of the client, if it is acceptable."""
    given: bytes = dict(scope["headers"]).get(_HEADER.encode(), b"")
    return given.decode() if _ACCEPTABLE.fullmatch(given) else uuid.uuid4().hex


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}…"


def _route(scope: Scope) -> str:
    """The route's template and not the path: each id would be a time series."""
    route = scope.get("route")
    return getattr(route, "path", None) or "unknown"
