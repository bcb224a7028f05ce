"""How errors are answered: in OpenAI's shape."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from workers.serve.errors import ApiError, InvalidRequest

# nginx's number for a client that disconnected before it was answered; it is only counted.
CLIENT_CLOSED_REQUEST = 499
# Of a path or method that there is not: most often it is the other server's.
_ELSEWHERE = (
    "this is the embeddings endpoint; models, datasets, jobs and versions are at the control plane "
    "(CMCL_URL of the client, by default port 8000)"
)
_LONGEST_PATH = 200


def install_error_handlers(app: FastAPI) -> None:
    """Let every error leave in OpenAI's shape."""

    async def on_error(_: Request, error: Exception) -> Response:
        return answer_to(error)

    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        asked = f"{request.method} {request.url.path[:_LONGEST_PATH]}"
        message = f"{asked}: {error.detail}; {_ELSEWHERE}"
        code = "method_not_allowed" if error.status_code == 405 else "path_not_found"
        headers = error.headers or {}
        return _response(error.status_code, InvalidRequest.kind, message, None, code, headers)

    for kind in (ApiError, ClientDisconnect, Exception):
        app.exception_handler(kind)(on_error)
    app.exception_handler(HTTPException)(on_http_exception)


def answer_to(error: Exception) -> Response:
    """Return the response for an error. Of an unhandled one it has no details: they are for the log."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if isinstance(error, ApiError):
        return _response(
            error.status, error.kind, str(error), error.param, error.code, error.headers
        )
    message = "internal server error"
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
