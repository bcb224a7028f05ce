"""The outermost layer of the page: headers of every response, and errors as documents.

The routes raise the same errors as `/v1`, and so do the layers between: all arrive here as problem+json.
"""

import json
import logging
from typing import Any

from anyio import to_thread
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import INTERNAL, ProblemResponse, problem
from service.page.explanations import NEXT_STEPS
from service.page.rendering import Pages
from service.telemetry.logs import current_request

logger = logging.getLogger(__name__)

_JSON = "application/json"

# Scripts and styles come from files alone; `trusted-types 'none'`: no script makes markup of text.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer`, browsers send `Origin: null` with the page's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class PageResponses:
    """The outermost ASGI middleware of the page."""

    def __init__(self, app: ASGIApp, pages: Pages) -> None:
        self._app = app
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, is_of_script=_JSON in Request(scope).headers.get("accept", ""))
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            if answer.has_started:
                raise
            logger.exception("unhandled error in a page", extra={"path": scope["path"][:512]})
            note = current_request.get()
            detail = f"it was logged under the request id {note.id if note else 'unknown'}"
            await problem(INTERNAL, detail, scope["path"])(scope, receive, answer.send)
        if answer.problem is not None:
            response = await to_thread.run_sync(self._document, scope, answer)
            await response(scope, receive, answer.pass_on)

    def _document(self, scope: Scope, answer: "_Answer") -> Response:
        found: dict[str, Any] = json.loads(answer.body)
        kind = str(found["type"]).rpartition(":")[2]
        response = self._pages.render_whole(
            Request(scope),
            "problem.html",
            found["status"],
            problem=found,
            steps=NEXT_STEPS.get(kind),
        )
        for name in ("retry-after", "connection"):
            if name in answer.problem_headers:
                response.headers[name] = answer.problem_headers[name]
        return response


class _Answer:
    """Passes a response on with more headers, and keeps a problem instead.

    A script that asks for JSON gets the problem as it is.
    """

    def __init__(self, send: Send, *, is_of_script: bool) -> None:
        self._send = send
        self._is_of_script = is_of_script
        self.has_started = False
        self.problem: Message | None = None
        self.body = b""

    @property
    def problem_headers(self) -> MutableHeaders:
        """Headers of the problem."""
        return MutableHeaders(scope=self.problem or {"headers": []})

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            kind = MutableHeaders(scope=message).get("content-type", "")
            if kind.startswith(ProblemResponse.media_type) and not self._is_of_script:
                self.problem = message
                return
        elif self.problem is not None:
            self.body += message.get("body", b"")
            return
        await self.pass_on(message)

    async def pass_on(self, message: Message) -> None:
        """Send a message of the response."""
        if message["type"] == "http.response.start":
            self.has_started = True
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)
