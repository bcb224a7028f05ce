"""The main path, past the layers that all other routes go through.

FastAPI's and Starlette's layers (routing, dependencies, exit stacks, telemetry) cost a one-row request
a quarter of its time, and `POST /v1/embeddings` needs none of them.
"""

import logging
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from workers.serve.api.errors import answer_to
from workers.serve.errors import ApiError

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class FastPath:
    """An ASGI application: requests of one path and method go to `handler`, all others to `app`."""

    def __init__(self, app: FastAPI, path: str, method: str, handler: Handler) -> None:
        self.app = app
        self._path = path
        self._method = method
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http" or not self._is_meant(scope):
            await self.app(scope, receive, send)
            return
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    def _is_meant(self, scope: Scope) -> bool:
        return bool(scope["path"] == self._path and scope["method"] == self._method)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except (ApiError, ClientDisconnect) as error:
            return answer_to(error)
        except Exception as error:
            logger.exception("%s %s failed", self._method, self._path)
            return answer_to(error)
