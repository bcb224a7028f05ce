"""How errors are answered: in OpenAI's shape, and counted."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from workers.serve.errors import ApiError, InvalidRequest
from workers.serve.metrics import ServeMetrics

# nginx's number for "the client went away"; nobody reads it, but it is counted.
_CLIENT_CLOSED_REQUEST = 499


def install_error_handlers(app: FastAPI, metrics: ServeMetrics) -> None:
    """Let every error leave in OpenAI's shape, and be counted."""

    async def on_api_error(_: Request, error: ApiError) -> Response:
        metrics.turned_away(error.status)
        return _response(
            error.status, error.kind, str(error), error.param, error.code, error.headers
        )

    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        metrics.turned_away(error.status_code)
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = "method_not_allowed" if error.status_code == 405 else "path_not_found"
        headers = error.headers or {}
        return _response(error.status_code, InvalidRequest.kind, message, None, code, headers)

    async def on_disconnect(_: Request, __: ClientDisconnect) -> Response:
        metrics.turned_away(_CLIENT_CLOSED_REQUEST)
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    async def on_bug(_: Request, __: Exception) -> Response:
        # The server logs the traceback; it is nothing for a client's eyes.
        metrics.turned_away(500)
        message = "the request failed because of an error in the server"
        return _response(500, ApiError.kind, message, None, ApiError.default_code, {})

    app.exception_handler(ApiError)(on_api_error)
    app.exception_handler(HTTPException)(on_http_exception)
    app.exception_handler(ClientDisconnect)(on_disconnect)
    app.exception_handler(Exception)(on_bug)


def _response(
    status: int,
    kind: str,
    message: str,
    param: str | None,
    code: str,
    headers: Mapping[str, str],
) -> Response:
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)
