"""Errors of the HTTP side, answered in OpenAI's shape.

ApiError
├── InvalidRequest       400   the message names field, value and what is permitted
├── NotFound             404   no such model, version or path
├── BodyTooLarge         413
├── Overloaded           429   with Retry-After
├── VersionDamaged       500   stored, but it fails its checks
└── NotReady             503   with Retry-After
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from workers.serve.metrics import ServeMetrics

# nginx's number for "the client went away"; nobody reads it, but it is counted.
_CLIENT_CLOSED_REQUEST = 499
_RETRY_SOON = MappingProxyType({"retry-after": "1"})


class ApiError(Exception):
    """What a client is told: `message` for people, `code` and `param` for programs."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.default_code


class InvalidRequest(ApiError):
    """The request itself is wrong; sending it again cannot help."""

    status = 400
    kind = "invalid_request_error"
    default_code = "invalid_value"


class NotFound(ApiError):
    """No such model or version."""

    status = 404
    kind = "invalid_request_error"
    default_code = "model_not_found"


class BodyTooLarge(ApiError):
    """More bytes than one request may have."""

    status = 413
    kind = "invalid_request_error"
    default_code = "body_too_large"


class Overloaded(ApiError):
    """Too many rows at once; the same request can succeed in a moment."""

    status = 429
    kind = "rate_limit_error"
    default_code = "too_many_rows_in_flight"
    headers = _RETRY_SOON


class VersionDamaged(ApiError):
    """The version is stored but cannot be used."""

    default_code = "version_damaged"


class NotReady(ApiError):
    """Not yet; the same request can succeed in a moment."""

    status = 503
    kind = "service_unavailable_error"
    default_code = "not_ready"
    headers = _RETRY_SOON


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
