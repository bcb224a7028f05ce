"""How errors are answered: in OpenAI's shape."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from workers.serve.errors import ApiError, InvalidRequest
from workers.serve.http.counted import CLIENT_CLOSED_REQUEST


def install_error_handlers(app: FastAPI) -> None:
    """Let every error leave in OpenAI's shape."""

    async def on_error(_: Request, error: Exception) -> Response:
        return answer_to(error)

    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = "method_not_allowed" if error.status_code == 405 else "path_not_found"
        headers = error.headers or {}
        return _response(error.status_code, InvalidRequest.kind, message, None, code, headers)

    for kind in (ApiError, ClientDisconnect, Exception):
        app.exception_handler(kind)(on_error)
    app.exception_handler(HTTPException)(on_http_exception)


def answer_to(error: Exception) -> Response:
    """What the client is told. Of a bug nothing but that: its traceback is for the log."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if isinstance(error, ApiError):
        return _response(
            error.status, error.kind, str(error), error.param, error.code, error.headers
        )
    message = "the request failed because of an error in the server"
    return _response(500, ApiError.kind, message, None, ApiError.default_code, {})


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
